"""CrossSplit's mathematics by hand: corrected labels, coefficients of each class, halves, partners."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.trainers.data.images.halves import own_parts, partners
from lowland.trainers.data.order import HalvesOrder, Order
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.averaged import WeightAverage
from lowland.trainers.methods.base import GlobalBatch
from lowland.trainers.methods.cross_split import CrossSplit, CrossSplitSettings
from lowland.trainers.methods.label_correction import (
    coefficients,
    corrected,
    divergence,
    imbalance,
    normalised,
    sharpened,
)
from lowland.trainers.models import mean_prediction
from lowland.trainers.world import World

LN2 = math.log(2)
unhurried = settings(deadline=None, max_examples=40)


def test_divergences_by_hand():
    labels = torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    predictions = torch.tensor([[1.0, 0], [0.5, 0.5], [0, 1]])
    assert divergence(labels, predictions).tolist() == pytest.approx([0, 0.2157615543, LN2])
    assert torch.equal(divergence(labels, predictions), divergence(predictions, labels))


@unhurried
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_divergences_are_within_bounds(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.softmax(5 * torch.randn(8, classes, generator=generator), dim=1) for _ in range(2))
    found = divergence(ours, theirs)
    assert bool(((found >= 0) & (found <= LN2 * (1 + 1e-6))).all())


def test_coefficients_by_hand():
    found = normalised(torch.tensor([0.1, 0.3, 0.5, 0.6]), torch.full((4,), 0.1), torch.full((4,), 0.5))
    assert found.tolist() == pytest.approx([0, 0.5, 1, 1])
    assert coefficients(found, 1.0).tolist() == pytest.approx([0, 0.5, 1, 1])
    assert coefficients(found, 0.6).tolist() == pytest.approx([0.2, 0.5, 0.8, 0.8])
    # A class that was not met, and one whose examples all disagree alike.
    least, most = torch.tensor([math.inf, 0.3]), torch.tensor([-math.inf, 0.3])
    assert normalised(torch.tensor([LN2, LN2 / 2]), least, most).tolist() == pytest.approx([1, 0.5])


def test_labels_are_corrected_and_sharpened_by_hand():
    label, prediction = torch.tensor([[1.0, 0]]), torch.tensor([[0.2, 0.8]])
    found = corrected(label, prediction, torch.tensor([0.25]))
    assert found[0].tolist() == pytest.approx([0.8, 0.2])
    assert sharpened(found, 0.5)[0].tolist() == pytest.approx([0.64 / 0.68, 0.04 / 0.68])
    assert torch.equal(sharpened(found, 1.0), found)
    assert sharpened(found, 0.01)[0].tolist() == pytest.approx([1, 0])
    flat = torch.full((1, 100), 0.01)
    for temperature in (0.5, 0.04, 1e-3):
        torch.testing.assert_close(sharpened(flat, temperature), flat)
    assert sharpened(torch.tensor([[0.0, 0.004, 0.996]]), 0.01)[0].tolist() == [0, 0, 1]


def test_imbalance_and_mean_predictions_by_hand():
    assert float(imbalance(torch.full((4,), 0.25))) == pytest.approx(0)
    assert float(imbalance(torch.tensor([0.75, 0.25]))) == pytest.approx(0.5 * math.log(4 / 3))
    first, second = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.4, 0.6]])
    assert mean_prediction(first.log() + 3, second.log()).exp()[0].tolist() == pytest.approx([0.6, 0.4])


def method(**changes):
    """Two classes, one micro-batch a step, two steps an epoch, a warm-up of two."""
    fields = {"classes": 2, "accumulation": 1, "steps_per_epoch": 2.0, "warmup": 2, "temperature": 1.0, **changes}
    made = CrossSplit(CrossSplitSettings(**fields), torch.zeros(4, dtype=torch.int64))
    made.attach(None, World.current(torch.device("cpu")))
    return made


def seen(made, step, labels, chances):
    """Targets of a step in which the peers give class 1 these chances."""
    guesses = torch.tensor([[1 - chance, chance] for chance in chances])
    made.begin_step(step)
    labels = torch.tensor(labels)
    guesses = made.guesses(labels, torch.arange(len(labels)), lambda: guesses)
    targets, others = made.targets(labels, guesses)
    made.after_step(None, World.current(torch.device("cpu")), None)
    return targets[:, 1].tolist(), others[:, 1].tolist()


def test_coefficients_are_of_the_epoch_before_and_of_half_and_class():
    """Bounds of the warm-up's steps 0 and 1 hold in steps 2 and 3, those of these in step 4."""
    made = method()
    # Places 0 and 2 are of the first half, 1 and 3 of the second; all labels are class 0.
    seen(made, 0, [0, 0, 0, 0], [0.0, 0.5, 0.5, 0.5])
    seen(made, 1, [0, 0, 0, 0], [0.1, 1.0, 0.2, 0.6])
    targets, others = seen(made, 2, [0, 0, 0, 1], [0.5, 0.5, 0.0, 0.5])
    # The first half's bounds are J(0) and J(0.5): beta 1 and 0.  The second's are J(0.5) and J(1), so beta is 0 at 0.5.
    # Class 1 was never met: beta is J / ln 2.
    unmet = 0.2157615543 / LN2
    assert targets == pytest.approx([0.5, 0.0, 0.0, unmet * 0.5 + (1 - unmet)])
    assert others == pytest.approx([0.5, 0.5, 0.0, 0.5])
    seen(made, 3, [0, 0, 0, 0], [1.0, 0.5, 1.0, 0.5])
    targets, _ = seen(made, 4, [0, 0, 0, 0], [1.0, 1.0, 0.0, 0.5])
    assert targets[0] == pytest.approx(1.0)
    assert targets[2] == pytest.approx(0.0)


def test_steps_that_were_not_applied_leave_no_bounds():
    made = method()
    made.begin_step(0)
    labels = torch.tensor([0, 1])
    made.guesses(labels, labels, lambda: torch.tensor([[0.4, 0.6], [0.4, 0.6]]))
    seen(made, 1, [0, 1], [0.2, 0.2])
    made.begin_step(2)
    least, _ = made.state()["bounds"].tolist()
    assert least[0] == pytest.approx(float(divergence(torch.tensor([[1.0, 0]]), torch.tensor([[0.8, 0.2]]))))


def test_weights_are_averaged_by_hand():
    """The mean at first, then what the decay says; BatchNorm's averages too, its counters not."""
    network = torch.nn.BatchNorm2d(1)
    found = WeightAverage(torch.nn.BatchNorm2d(1), 0.75)
    for step, (value, expected) in enumerate(((4.0, 4.0), (2.0, 3.0), (0.0, 2.0), (2.0, 2.0), (6.0, 3.0)), 1):
        with torch.no_grad():
            network.weight.fill_(value)
            network.running_var.fill_(value)
        network.num_batches_tracked += 1
        found.move(network, step)
        assert float(found.network.weight) == pytest.approx(expected)
        assert float(found.network.running_var) == pytest.approx(expected)
    assert int(found.network.num_batches_tracked) == 0
    again = WeightAverage(torch.nn.BatchNorm2d(1), 0.75)
    again.load_state(found.state())
    assert torch.equal(again.network.weight, found.network.weight)
    with pytest.raises(RecipeError, match="begun without averaged weights"):
        again.load_state({"bounds": torch.zeros(1)})


def test_schedules():
    made = method(warmup=10, gammas=(0.6, 0.8, 1.0), gamma_until=(20, 30), ramp=16, unlabelled=32.0, steps_per_epoch=4)
    found = made.settings
    assert [found.gamma(step) for step in (10, 29, 30, 39, 40, 99)] == [0.6, 0.6, 0.8, 0.8, 1.0, 1.0]
    assert [found.unlabelled_factor(step) for step in (10, 14, 26, 99)] == [0, 8, 32, 32]
    assert [found.window(step) for step in (5, 6, 9, 10, 13, 14)] == [-2, -1, -1, 0, 0, 1]
    assert found.views_from == 6


def test_the_penalty_is_of_each_networks_mean_over_the_global_batch():
    made = method(balance=2.0)
    made.begin_step(2)
    chances = {"a": [0.5, 1.0], "b": [0.5, 0.0], "c": [0.5, 0.5], "d": [0.5, 0.5]}
    scalars = {name: torch.tensor(values, dtype=torch.float64) for name, values in chances.items()}
    ones = torch.ones(2, dtype=torch.float64)
    found = made.penalty(GlobalBatch(ones, torch.zeros(2, dtype=torch.int64), ones, None, scalars))
    assert float(found) == pytest.approx(2 * 0.5 * math.log(4 / 3))


@unhurried
@given(st.integers(2, 300), st.integers(0, 2**32 - 1), st.integers(0, 500), st.integers(0, 200))
def test_halves_are_disjoint_and_each_has_an_order_of_its_own(rows, seed, start, count):
    seeds = (seed, seed ^ 1)
    order = HalvesOrder(rows, seed, seeds)
    first, second = order.halves
    assert sorted([*first, *second]) == list(range(rows))
    assert len(first) - len(second) in (0, 1)
    examples = order.examples(0, start + count)
    for parity, half in enumerate(order.halves):
        own = examples[parity::2]
        assert np.array_equal(own, half[Order(len(half), seeds[parity]).examples(0, len(own))])
    assert np.array_equal(order.examples(start, count), examples[start:])
    places = np.arange(start + count)
    epochs = order.epochs(places)
    assert all(epochs[place] == place // 2 // len(order.halves[place % 2]) for place in places)


def test_halves_are_of_seed_and_row():
    one, other = (HalvesOrder(500, seed, (7, 8)).halves[0] for seed in (1, 2))
    assert np.array_equal(one, HalvesOrder(500, 1, (3, 4)).halves[0])
    assert 90 < len(set(one) & set(other)) < 160
    with pytest.raises(ValueError, match="at least two rows"):
        HalvesOrder(1, 0, (0, 1))


@unhurried
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(1, 40), st.booleans())
def test_partners_are_a_permutation_within_a_half_or_across(seed, first, pairs, across):
    found = partners(seed, 2 * first, 2 * pairs, across=across)
    assert sorted(found) == list(range(2 * pairs))
    assert np.array_equal(found, partners(seed, 2 * first, 2 * pairs, across=across))
    if not across:
        assert np.array_equal(found % 2, np.arange(2 * pairs) % 2)


def test_own_parts_are_at_least_half():
    found = own_parts(np.linspace(0, 1, 101), 4.0)
    assert found.min() == 0.5
    assert np.allclose(found, found[::-1])
