"""The stream of examples is a permutation per epoch, from any place, by seed and epoch alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.trainers.data.order import Order

rows = st.integers(1, 700)
unhurried = settings(deadline=None)  # a busy machine is no defect
seeds = st.integers(0, 2**32 - 1)


@unhurried
@given(rows, seeds, st.integers(0, 5))
def test_each_epoch_is_a_permutation(count: int, seed: int, epoch: int):
    examples = Order(count, seed).examples(epoch * count, count)
    assert np.array_equal(np.sort(examples), np.arange(count))


@unhurried
@given(st.integers(20, 700), seeds, st.integers(0, 1000), st.integers(0, 900))
def test_any_stretch_is_the_same_wherever_reading_begins(count: int, seed: int, start: int, length: int):
    order = Order(count, seed)
    assert np.array_equal(order.examples(start, length), order.examples(0, start + length)[start:])


def test_epochs_and_seeds_differ():
    first = Order(1000, 7).examples(0, 2000)
    assert not np.array_equal(first[:1000], first[1000:])
    assert not np.array_equal(first, Order(1000, 8).examples(0, 2000))


def test_the_order_of_a_seed_never_changes():
    """A resumed run reads on where it stopped, so this may not depend on the version of anything."""
    assert Order(10, 0).examples(0, 12).tolist() == [5, 7, 6, 3, 0, 4, 1, 9, 2, 8, 4, 6]


def test_every_row_comes_equally_often_at_every_place():
    count, trials = 6, 6000
    seen = np.zeros((count, count))
    for seed in range(trials):
        seen[np.arange(count), Order(count, seed).examples(0, count)] += 1
    expected = trials / count
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert chi_square < 53  # 25 degrees of freedom: p = 0.001


def test_neighbours_are_not_kept_together():
    examples = Order(100_000, 3).examples(0, 100_000)
    assert abs(np.corrcoef(examples[:-1], examples[1:])[0, 1]) < 0.015


def test_no_rows_is_our_own_mistake():
    with pytest.raises(ValueError, match="at least one row"):
        Order(0, 0)
