"""Orders in which images come as often as weights say, and training sets with a long tail."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vision import config

from lowland.trainers.data.images.data import open_images
from lowland.trainers.data.images.long_tail import long_tail, tail_counts
from lowland.trainers.data.images.sampling import SampledOrder, Sampling, systematic_draws
from lowland.trainers.data.order import Order

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def weights(draw):
    """Of mean 1, some far from it."""
    found = np.array(draw(st.lists(st.floats(0.01, 50), min_size=1, max_size=40)))
    return found / found.mean()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 50), SEEDS, st.integers(0, 120), st.integers(1, 130))
def test_equal_weights_are_the_plain_order(rows, seed, start, count):
    order = SampledOrder(rows, seed, Sampling(np.ones(rows), 0))
    assert np.array_equal(order.examples(start, count), Order(rows, seed).examples(start, count))
    assert np.array_equal(order.draws(start, count), order.examples(start, count))


@settings(max_examples=40, deadline=None)
@given(weights(), SEEDS, st.integers(0, 3))
def test_each_row_comes_as_often_as_its_weight_says(weights, seed, epoch):
    rows = len(weights)
    order = SampledOrder(rows, seed, Sampling(weights, 0))
    counts = np.bincount(order.examples(epoch * rows, rows), minlength=rows)
    assert counts.sum() == rows
    assert (abs(counts - weights) < 1 + 1e-9).all()
    assert len(set(order.draws(epoch * rows, rows).tolist())) == rows, "every draw has random numbers of its own"


@settings(max_examples=20, deadline=None)
@given(weights())
def test_on_average_exactly_as_often(weights):
    """Over offsets that lie evenly in [0, 1)."""
    rows, parts = len(weights), 128
    draws = [systematic_draws(weights, part / parts) for part in range(parts)]
    means = np.bincount(np.concatenate(draws) % rows, minlength=rows) / parts
    assert np.allclose(means, weights, atol=1.01 / parts)


@settings(max_examples=15, deadline=None)
@given(weights(), SEEDS, st.integers(0, 80), st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_an_example_does_not_depend_on_how_the_stream_is_cut(weights, seed, start, parts):
    rows, sampling = len(weights), Sampling(weights, 17)
    whole = SampledOrder(rows, seed, sampling).draws(start, sum(parts))
    ends = np.cumsum(parts)
    cut = [SampledOrder(rows, seed, sampling).draws(start + end - n, n) for end, n in zip(ends, parts, strict=True)]
    assert np.array_equal(np.concatenate(cut), whole)


def test_examples_before_the_start_are_those_of_the_plain_order():
    order = SampledOrder(10, 3, Sampling(np.array([5.5, *[0.5] * 9]), 14))
    plain = Order(10, 3).examples(0, 40)
    found = order.examples(0, 40)
    assert np.array_equal(found[:14], plain[:14])
    assert [int((found[first : first + 10] == 0).sum()) in (5, 6) for first in (20, 30)] == [True, True]
    epochs = [sorted(found[first : first + 10]) for first in (20, 30)]
    assert not np.array_equal(found[20:30], found[30:40])
    assert epochs[0] != sorted(plain[20:30])


@pytest.mark.parametrize(
    ("counts", "ratio", "kept"),
    [
        ([100, 100, 100], 100, [100, 10, 1]),
        ([100, 100], 1, [100, 100]),
        ([100, 5, 100], 4, [100, 5, 25]),
        ([10, 10, 10], 1000, [10, 1, 1]),
        ([10, 0, 10], 10, [10, 0, 1]),
    ],
)
def test_the_counts_of_a_long_tail(counts, ratio, kept):
    assert tail_counts(np.array(counts), ratio).tolist() == kept


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=80), st.floats(1, 200), SEEDS)
def test_a_long_tail_is_a_part_of_the_images(labels, ratio, seed):
    labels = np.array(labels)
    kept = long_tail(labels, 5, ratio, seed)
    assert (np.diff(kept) > 0).all()
    wanted = tail_counts(np.bincount(labels, minlength=5), ratio)
    assert np.array_equal(np.bincount(labels[kept], minlength=5), wanted)


def test_a_recipe_makes_a_long_tail_of_its_training_images_alone():
    plain = open_images(config().data)
    tail = {"channels": 1, "threads": 1, "long_tail": {"ratio": 20}}
    data = open_images(config(data=tail).data)
    counts = np.bincount(data.train.labels, minlength=10)
    assert np.array_equal(data.held_out.labels, plain.held_out.labels)
    assert counts.tolist() == tail_counts(np.bincount(plain.train.labels), 20).tolist()
    assert counts[0] / counts[9] == pytest.approx(20, rel=0.05)
    other = open_images(config(data={**tail, "long_tail": {"ratio": 20, "seed": 1}}).data)
    assert set(other.train.rows) != set(data.train.rows) <= set(plain.train.rows)
