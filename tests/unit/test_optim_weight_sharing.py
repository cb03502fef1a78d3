"""The proximal step against values worked out by hand and a brute-force solver, and the wrapper around optimizers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowland.optim import AdaTAMW, WeightSharing
from lowland.optim.weight_sharing import isotonic, shared_weights

WEIGHTS = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=40)
SMALL = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=6)
"""With ties."""


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def move(w: Tensor, strength: float, threshold: float = 0.0, damping: float = 0.0) -> Tensor:
    return shared_weights(w, strength, threshold, damping)[0]


def penalty(w: Tensor) -> float:
    """R(w), from all pairs."""
    return float((w[:, None] - w[None]).abs().sum() / 2 / (len(w) - 1))


@pytest.mark.parametrize(
    ("weights", "arguments", "expected"),
    [
        ((0, 1, 3), (0.5,), (0.5, 1, 2.5)),
        ((0, 1, 3), (1.0,), (1, 1, 2)),
        ((0, 1, 3), (2.0,), (4 / 3, 4 / 3, 4 / 3)),
        ((3, 0, 1), (1.0,), (2, 1, 1)),
        ((0, 0.2, 1, 1.1), (0.3,), (0.3, 0.3, 0.85, 0.85)),
        ((1, -2), (0.7,), (0.3, -1.3)),
        ((1, -2), (1.6,), (-0.5, -0.5)),
        ((0, 1, 3), (1.0, 0.0, 0.5), (0.5, 1, 2.5)),
        ((0, 1, 3), (0.5, 0.5), (0, 0.5, 2)),
        ((0, 1, 3), (0.5, 0.5, 0.5), (0, 0.75, 2.5)),
        ((0.25, -2, 1), (0.0, 0.5), (0, -1.5, 0.5)),
        ((5,), (1.0,), (5,)),
    ],
)
def test_worked_out_by_hand(
    weights: tuple[float, ...], arguments: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert move(vector(*weights), *arguments).tolist() == pytest.approx(expected, abs=1e-12)


def projection_by_brute_force(values: list[float]) -> list[float]:
    """The nearest non-decreasing sequence, among all partitions into runs of equal values."""
    best, found = float("inf"), values
    for mask in range(2 ** (len(values) - 1)):
        runs, run = [], [values[0]]
        for i, value in enumerate(values[1:]):
            if mask >> i & 1:
                runs.append(run)
                run = []
            run.append(value)
        runs.append(run)
        means = [sum(run) / len(run) for run in runs]
        distance = sum((v - m) ** 2 for run, m in zip(runs, means, strict=True) for v in run)
        if all(a <= b for a, b in pairwise(means)) and distance < best:
            best, found = distance, [m for run, m in zip(runs, means, strict=True) for _ in run]
    return found


@given(st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=9))
def test_isotonic_regression_against_brute_force(values: list[float]) -> None:
    means, sizes = isotonic(vector(*values))
    assert means.repeat_interleave(sizes).tolist() == pytest.approx(projection_by_brute_force(values), abs=1e-9)


@settings(max_examples=50)
@given(SMALL.filter(lambda w: len(w) > 1), st.integers(1, 12).map(lambda n: n / 4))
def test_no_point_nearby_has_a_lower_objective(weights: list[float], strength: float) -> None:
    """The definition itself: the objective is strictly convex, so a minimum near by is the minimum."""
    w = vector(*weights)

    def objective(x: Tensor) -> float:
        return float((x - w).square().sum() / 2) + strength * penalty(x)

    found = move(w, strength)
    lowest = objective(found)
    generator = torch.Generator().manual_seed(0)
    directions = [
        *torch.eye(len(w), dtype=torch.float64),
        *torch.randn(20, len(w), generator=generator, dtype=torch.float64),
        *(found[None] == value for value in found.unique()),
    ]
    for direction in directions:
        for size in (1e-1, 1e-3, -1e-3, -1e-1):
            assert objective(found + size * direction.reshape(-1).double()) >= lowest - 1e-12


@given(WEIGHTS, st.floats(0, 5), st.floats(0, 5))
def test_one_step_after_another_is_one_step_of_both(weights: list[float], a: float, b: float) -> None:
    w = vector(*weights)
    assert torch.allclose(move(move(w, a), b), move(w, a + b), atol=1e-9)


@given(WEIGHTS, st.floats(0, 20))
def test_order_and_mean_stay_and_the_penalty_falls(weights: list[float], strength: float) -> None:
    w = vector(*weights)
    found = move(w, strength)
    assert float(found.mean()) == pytest.approx(float(w.mean()), abs=1e-9)
    assert (found[w.argsort()].diff() >= -1e-9).all()
    assert penalty(found) <= penalty(w) + 1e-9
    assert float((found - w).abs().max()) <= strength + 1e-9


@given(WEIGHTS, st.floats(0, 1), st.floats(0, 1))
def test_the_threshold_comes_after(weights: list[float], strength: float, threshold: float) -> None:
    w = vector(*weights)
    shared = move(w, strength)
    expected = shared.sign() * (shared.abs() - threshold).clamp(min=0)
    assert torch.allclose(move(w, strength, threshold), expected, atol=1e-12)


@given(WEIGHTS.filter(lambda w: max(w) - min(w) > 1e-3))
def test_all_weights_become_their_mean_from_a_strength_on(weights: list[float]) -> None:
    w = vector(*weights)
    d, ascending = len(w), w.sort().values
    heads = ascending.cumsum(0)[:-1] / torch.arange(1, d)
    least = float(((d - 1) * (w.mean() - heads) / (d - torch.arange(1, d))).max())
    assert torch.allclose(move(w, least * 1.001), w.mean().expand(d), atol=1e-9)
    assert move(w, least * 0.99).unique().numel() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_is_the_identity_to_the_bit(dtype: torch.dtype) -> None:
    w = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(move(w, 0.0), w)
    assert torch.equal(move(w, 0.0, damping=0.5), w)


def test_equal_weights_stay_equal_and_others_keep_their_shape() -> None:
    w = torch.tensor([[1.0, -2.0, 1.0], [1.0, 4.0, -2.0]])
    found, distinct = shared_weights(w, 0.1)
    assert found.shape == w.shape
    assert distinct == 3
    assert found.unique().numel() == 3
    assert found[0, 0] == found[0, 2] == found[1, 0]


def test_a_long_cascade_is_ended_by_the_scan() -> None:
    """Each round pools one pair only: the last value draws in its neighbours one after the other."""
    n = 3000
    values = torch.cat([torch.arange(n, dtype=torch.float64), vector(-1e9)])
    means, sizes = isotonic(values)
    assert sizes.tolist() == [n + 1]
    assert float(means) == pytest.approx(float(values.mean()))
    steps = torch.cat([values[: n // 2], vector(float(n // 2) - 100.25), values[n // 2 : -1]])
    means, sizes = isotonic(steps)
    found = means.repeat_interleave(sizes)
    assert (found.diff() >= -1e-9).all()
    pooled = int(sizes.max())
    assert pooled > 10
    first = int(sizes.argmax())
    start = int(sizes[:first].sum())
    assert float(means[first]) == pytest.approx(float(steps[start : start + pooled].mean()))
    assert torch.equal(found[:start], steps[:start])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)


def trained(make: Any, seed: int = 0) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = Net()
    optimizer = make(net)
    for _ in range(3):
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    return net, optimizer


def test_it_follows_the_step_of_any_optimizer() -> None:
    def manual(net: Net) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        plain = optimizer.step

        def step() -> None:
            plain()
            for p in net.parameters():
                if p.dim() > 1:
                    p.data = move(p.data, 2.0 * 1e-2, 1e-3, 0.25)

        optimizer.step = step  # type: ignore[method-assign,assignment]
        return optimizer

    expected, _ = trained(manual)
    found, _ = trained(
        lambda net: WeightSharing(torch.optim.AdamW(net.parameters(), lr=1e-2), 2.0, l1=1e-3, damping=0.25)
    )
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("tensors", "chosen"),
    [
        (None, {"first.weight", "second.weight"}),
        (r"^first\.", {"first.weight", "first.bias"}),
        ("bias", {"first.bias", "second.bias"}),
    ],
)
def test_which_tensors(tensors: str | None, chosen: set[str]) -> None:
    plain, _ = trained(lambda net: torch.optim.SGD(net.named_parameters(), lr=0.1))
    found, _ = trained(lambda net: WeightSharing(torch.optim.SGD(net.named_parameters(), lr=0.1), 0.5, tensors=tensors))
    other = dict(plain.named_parameters())
    assert {name for name, p in found.named_parameters() if not torch.equal(p, other[name])} == chosen


def test_each_group_has_its_own_rate() -> None:
    def make(net: Net) -> torch.optim.Optimizer:
        groups = [{"params": net.first.parameters(), "lr": 0.0}, {"params": net.second.parameters(), "lr": 0.1}]
        return WeightSharing(torch.optim.SGD(groups), 1e6)

    net, optimizer = trained(make)
    assert net.first.weight.unique().numel() == 12
    assert torch.allclose(net.second.weight, net.second.weight.mean().expand(2, 3))
    assert isinstance(optimizer, WeightSharing)
    assert optimizer.metrics() == {"distinct_weights": pytest.approx(13 / 18)}


def test_a_name_that_no_tensor_has() -> None:
    with pytest.raises(ValueError, match=r"no tensor whose name has 'fc1'; the names are first.weight, first.bias"):
        trained(lambda net: WeightSharing(torch.optim.SGD(net.named_parameters(), lr=0.1), 0.5, tensors="fc1"))


def test_state_of_the_base_goes_through() -> None:
    _, optimizer = trained(lambda net: WeightSharing(AdaTAMW(net.parameters(), lr=1e-2), 0.5))
    other = WeightSharing(AdaTAMW(Net().parameters(), lr=0.5), 0.5)
    other.load_state_dict(optimizer.state_dict())
    assert other.shared_state() == optimizer.shared_state() != {}  # type: ignore[attr-defined]
    assert other.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "strength >= 0 must hold"),
        ({"strength": 1.0, "l1": -1.0}, "l1 >= 0 must hold"),
        ({"strength": 1.0, "damping": 1.0}, r"damping in \[0, 1\) must hold"),
    ],
)
def test_arguments_outside_their_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSharing(torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1), **arguments)
