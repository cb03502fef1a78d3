"""Multipliers against special cases and traces computed by hand; constraints on a problem with a known answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.trainers.methods.base import GlobalBatch
from lowland.trainers.methods.ceag import CEAG, AccuracyWindow, excess_gaps
from lowland.trainers.methods.constraints import Constraints, Part, batch_constraint
from lowland.trainers.methods.multipliers import Multipliers

ERRORS = (1.0, 0.5, -0.2, 0.1)


def trace(violations, inequality=False, **fields):
    multipliers = Multipliers([inequality], **fields)
    found = []
    for violation in violations:
        multipliers.step(torch.tensor([violation], dtype=torch.float64))
        found.append(float(multipliers.values))
    return found


@pytest.mark.parametrize(
    ("start", "nu", "expected"),
    [
        ("zeros", 0.0, [3, 2.5, 0.9, 1.6]),
        ("zeros", 0.5, [2, 2.5, 1.6, 1.65]),
        ("first", 0.0, [1, 0.5, -1.1, -0.4]),
        ("first", 0.5, [1, 1, -0.15, -0.225]),
    ],
)
def test_nupi_traces(start, nu, expected):
    assert trace(ERRORS, lr=1.0, ki=1.0, kp=2.0, nu=nu, start=start) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=12), st.floats(-0.9, 0.9), st.floats(0.01, 1))
def test_nupi_becomes_heavy_ball(errors, beta, alpha):
    """nu = beta, ki = a / (1 - beta), kp = -a beta / (1 - beta)^2."""
    velocity = value = 0.0
    expected = []
    for error in errors:
        velocity = beta * velocity + alpha * error
        value += velocity
        expected.append(value)
    ki, kp = alpha / (1 - beta), -alpha * beta / (1 - beta) ** 2
    found = trace(errors, lr=1.0, ki=ki, kp=kp, nu=beta, start="zeros")
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_without_kp_it_is_gradient_ascent():
    assert trace(ERRORS, lr=0.5) == pytest.approx([0.5, 0.75, 0.65, 0.7])


def test_adam_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=0.1, maximize=True)
    expected = []
    for error in ERRORS:
        parameter.grad = torch.tensor([error], dtype=torch.float64)
        optimizer.step()
        expected.append(parameter.item())
    assert trace(ERRORS, optimizer="adam", lr=0.1) == pytest.approx(expected)


def test_multipliers_of_inequalities_stay_at_zero_or_above():
    assert trace((1.0, -3.0, 1.0), inequality=True, lr=1.0) == [1, 0, 1]
    assert trace((1.0, -3.0, 1.0), inequality=False, lr=1.0) == [1, -2, -1]


@pytest.mark.parametrize("optimizer", ["nupi", "adam"])
def test_a_violation_that_was_not_seen_changes_nothing(optimizer):
    both = Multipliers([True, True], optimizer=optimizer, lr=0.1, kp=1.0, nu=0.5)
    both.step(torch.tensor([1.0, 2.0]).double())
    before = both.state()
    both.step(torch.tensor([5.0, torch.nan]).double(), torch.tensor([True, False]))
    for name, value in both.state().items():
        assert value[1] == before[name][1]
        assert torch.isfinite(value).all()
    again = Multipliers([True, True], optimizer=optimizer, lr=0.1, kp=1.0, nu=0.5)
    again.load(both.state())
    for one in (both, again):
        one.step(torch.tensor([-1.0, 1.0]).double())
    assert torch.equal(both.values, again.values)


def test_a_constrained_problem_ends_at_its_known_answer():
    """min x^2 subject to x >= 1 and min x^2 + y^2 subject to x + y = 1: multipliers 2 and -1."""
    for senses, sense, answer, multiplier in (([True], "at_least", [1.0], 2), ([False], "equals", [0.5, 0.5], -1)):
        point = torch.zeros(len(answer), dtype=torch.float64)
        multipliers = Multipliers(senses, lr=0.05, kp=4.0, nu=0.3)
        for _ in range(800):
            sign = -1 if sense == "at_least" else 1
            gradient = 2 * point + sign * multipliers.values
            multipliers.step(sign * (point.sum() - 1)[None])
            point = point - 0.05 * gradient
        assert point.tolist() == pytest.approx(answer, abs=1e-6)
        assert float(multipliers.values) == pytest.approx(multiplier, abs=1e-6)


def test_nupi_overshoots_less_than_ascent():
    """The paper's point: on the same problem the proportional term damps the oscillation."""

    def largest(kp):
        point, highest = torch.zeros(1, dtype=torch.float64), 0.0
        multipliers = Multipliers([True], lr=0.2, kp=kp)
        for _ in range(300):
            gradient = 2 * point - multipliers.values
            multipliers.step(1 - point)
            point = point - 0.05 * gradient
            highest = max(highest, float(point))
        return highest

    assert largest(4.0) - 1 < (largest(0.0) - 1) / 2


def batch(losses, correct, labels, groups, **scalars):
    numbers = {name: torch.tensor(values).double() for name, values in scalars.items()}
    return GlobalBatch(
        torch.tensor(losses).double().requires_grad_(),
        torch.tensor(labels),
        torch.tensor(correct).double(),
        torch.tensor(groups),
        numbers,
    )


BATCH = batch([1.0, 2.0, 3.0, 6.0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1])


@pytest.mark.parametrize(
    ("metric", "part", "less_all", "sense", "violation"),
    [
        ("loss", Part(), False, "at_most", 3 - 0.5),
        ("loss", Part(group=1), False, "at_least", 0.5 - 11 / 3),
        ("loss", Part(group=1, label=0), True, "equals", -1 - 0.5),
        ("error", Part(), False, "at_most", 0.75 - 0.5),
        ("error", Part(label=0), True, "at_most", -0.25 - 0.5),
        ("loss", Part(group=7), False, "at_most", None),
    ],
)
def test_violations_by_hand(metric, part, less_all, sense, violation):
    made = batch_constraint("c", metric, sense, 0.5, part=part, less_all=less_all)
    found = made.violation(BATCH)
    assert (found is None) if violation is None else float(found) == pytest.approx(violation)


def test_chances_are_of_their_class():
    both = batch([1.0, 1.0], [1, 1], [0, 0], [0, 0], **{"chance/2": [0.2, 0.6]})
    made = batch_constraint("c", "chance", "equals", 0.3, part=Part(), of_class=2)
    assert float(made.violation(both)) == pytest.approx(0.1)


def test_constraints_act_from_their_start_and_are_restored():
    def make():
        made = batch_constraint("low", "loss", "at_most", 0.5, part=Part())
        return Constraints([made], Multipliers([True], lr=0.1), start=2)

    method = make()
    for step, expected in ((0, 0.0), (1, 0.0), (2, 0.25), (3, 0.5)):
        method.begin_step(step)
        penalty = method.penalty(BATCH)
        assert (penalty is None) == (step < 2)
        method.after_step(None, None, BATCH)
        assert method.metrics()["low/multiplier"] == pytest.approx(expected)
    restored = make()
    restored.load_state(method.state())
    assert restored.metrics()["low/multiplier"] == pytest.approx(0.5)


def test_excess_gaps_by_hand():
    gaps = excess_gaps(torch.tensor([0.9, 0.8]).double(), torch.tensor([0.85, 0.6]).double())
    assert gaps.tolist() == pytest.approx([-0.075, 0.075])
    multipliers = Multipliers([True, True], lr=1.0)
    multipliers.step(gaps - 0.05)
    assert multipliers.values.tolist() == pytest.approx([0, 0.025])


def test_a_window_keeps_the_latest_examples_in_whatever_order():
    correct, groups = torch.tensor([1, 0, 1, 1.0, 0, 0]), torch.tensor([0, 0, 1, 0, 1, 1])
    shuffled = torch.tensor([3, 0, 4, 1, 5, 2])
    windows = [AccuracyWindow(2, 4), AccuracyWindow(2, 4)]
    for window, order in zip(windows, (torch.arange(6), shuffled), strict=True):
        window.add(correct[order], groups[order])
        assert window.full.tolist() == [False, False]
        window.add(torch.ones(3), torch.zeros(3, dtype=torch.int64))
    for window in windows:
        # Group 0: 3 new ones and the 3 before, since fewer would be 3 alone; group 1 still lacks one.
        assert window.full.tolist() == [True, False]
        assert window.accuracy.tolist() == pytest.approx([5 / 6, 1 / 3])
    windows[0].add(torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    assert windows[0].accuracy.tolist() == pytest.approx([0, 1 / 3])


def test_ceag_takes_the_dense_accuracies_when_sparsity_begins():
    method = CEAG(0.05, Multipliers([True] * 2, lr=1.0), AccuracyWindow(2, 2), dense=None, start=2)
    dense = batch([1.0] * 4, [1, 1, 1, 0], [0] * 4, [0, 0, 1, 1])
    sparse = batch([1.0] * 4, [1, 1, 0, 0], [0] * 4, [0, 0, 1, 1])
    for step in (0, 1):
        method.begin_step(step)
        assert method.penalty(dense) is None
        method.after_step(None, None, dense)
    method.begin_step(2)
    method.after_step(None, None, sparse)
    # Losses of accuracy 0 and 0.5, whose mean is 0.25.
    said = method.metrics()
    assert (said["group_0/gap"], said["group_1/gap"]) == (-0.25, 0.25)
    assert (said["group_0/multiplier"], said["group_1/multiplier"]) == pytest.approx((0, 0.2))
    restored = CEAG(0.05, Multipliers([True] * 2, lr=1.0), AccuracyWindow(2, 2), dense=None, start=2)
    restored.load_state(method.state())
    for one in (method, restored):
        one.begin_step(3)
        one.after_step(None, None, sparse)
    assert restored.metrics() == method.metrics()
    penalty = method.penalty(batch([1.0, 2.0, 5.0, 7.0], [0] * 4, [0] * 4, [0, 0, 1, 1]))
    assert float(penalty.detach()) == pytest.approx(0.4 * (6 - 3.75))
