"""Lookbehind against values worked out by hand, in its limits, and where it stands between steps."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowland.optim import EMA, SAM, Lookbehind


class Bowl:
    """f = sum of curvature w^2 / 2 over tensors, in float64."""

    def __init__(self, curvatures: list[list[float]], starts: list[list[float]]) -> None:
        self.w = [nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in starts]
        self.seen: list[list[Tensor]] = []
        """Weights at each evaluation."""
        self._curvatures = [torch.tensor(c, dtype=torch.float64) for c in curvatures]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> float:
            optimizer.zero_grad()
            self.seen.append([w.detach().clone() for w in self.w])
            loss = torch.stack([(c * w**2).sum() / 2 for c, w in zip(self._curvatures, self.w, strict=True)]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss)

        optimizer.step(closure)


def sgd(bowl: Bowl, **arguments: Any) -> torch.optim.SGD:
    return torch.optim.SGD(bowl.w, lr=0.1, **arguments)


def test_one_weight_worked_out_by_hand() -> None:
    bowl = Bowl([[1]], [[1]])
    optimizer = Lookbehind(sgd(bowl), 0.1, k=2, alpha=0.5)
    for expected in (0.885, 0.7815):
        bowl.step(optimizer)
        assert bowl.w[0].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("scope", "alpha", "expected"),
    [
        ("tensor", (0.99962302 + 0.99997560) / 2, ([0.78972750, -0.42613286], [0.15245874, -0.89742798])),
        ("global", 0.99938954, ([0.78977661, -0.42598661], [0.15266242, -0.89748809])),
    ],
)
def test_adaptive_alpha_worked_out_by_hand(scope: Any, alpha: float, expected: tuple[list[float], list[float]]) -> None:
    bowl = Bowl([[1, 10], [3, 0.5]], [[1, 0.2], [0.5, -1]])
    optimizer = Lookbehind(sgd(bowl), 0.1, k=2, scope=scope)
    bowl.step(optimizer)
    for w, values in zip(bowl.w, expected, strict=True):
        assert w.tolist() == pytest.approx(values, abs=1e-6)
    assert optimizer.metrics()["alpha"] == pytest.approx(alpha, abs=1e-6)


def reference(
    w: list[Tensor], curvatures: list[Tensor], k: int, rho: float, lr: float, alpha: float, eta: float | None
) -> list[Tensor]:
    """A step of Lookbehind-SAM, or -ASAM with eta, with SGD, written with 2 k gradients as in the paper."""
    high, fast = [x.clone() for x in w], [x.clone() for x in w]
    for _ in range(k):
        a = [c * x for c, x in zip(curvatures, high, strict=True)]
        t = [torch.ones_like(x) if eta is None else x.abs() + eta for x in high]
        norm = torch.cat([x * y for x, y in zip(t, a, strict=True)]).norm()
        high = [x + rho * y**2 * z / norm for x, y, z in zip(high, t, a, strict=True)]
        fast = [x - lr * c * y for x, c, y in zip(fast, curvatures, high, strict=True)]
    return [x + alpha * (y - x) for x, y in zip(w, fast, strict=True)]


@given(
    st.integers(1, 5), st.floats(0.01, 0.5), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1)), st.integers(0, 99)
)
def test_k_plus_one_gradients_do(k: int, rho: float, alpha: float, eta: float | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w, c = ([torch.rand(n, generator=generator, dtype=torch.float64) + 0.1 for n in (1, 3)] for _ in range(2))
    bowl = Bowl([x.tolist() for x in c], [x.tolist() for x in w])
    more: dict[str, Any] = {} if eta is None else {"adaptive": "all", "eta": eta}
    bowl.step(Lookbehind(sgd(bowl), rho, k=k, alpha=alpha, **more))
    assert len(bowl.seen) == k + 1
    for found, expected in zip(bowl.w, reference(w, c, k, rho, 0.1, alpha, eta), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


# Limits.


def trained(make: Any, steps: int = 4) -> list[Tensor]:
    bowl = Bowl([[1, 10], [3, 0.5]], [[1, 0.2], [0.5, -1]])
    optimizer = make(bowl)
    for _ in range(steps):
        bowl.step(optimizer)
    return [w.detach() for w in bowl.w]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("more", [{}, {"adaptive": "all"}], ids=["SAM", "ASAM"])
@pytest.mark.parametrize("alpha", [1.0, "adaptive"])
def test_one_step_all_the_way_is_sam_bitwise(alpha: Any, more: dict[str, Any]) -> None:
    sam = trained(lambda bowl: SAM(torch.optim.AdamW(bowl.w, lr=0.01), 0.1, **more))
    assert same(trained(lambda b: Lookbehind(torch.optim.AdamW(b.w, lr=0.01), 0.1, k=1, alpha=alpha, **more)), sam)


def test_none_of_the_way_leaves_the_weights_and_trains_the_base() -> None:
    bowl = Bowl([[1, 10]], [[1, 0.2]])
    optimizer = Lookbehind(sgd(bowl, momentum=0.9), 0.1, k=3, alpha=0.0)
    before = bowl.w[0].detach().clone()
    bowl.step(optimizer)
    assert torch.equal(bowl.w[0], before)
    assert bool((optimizer.base.state[bowl.w[0]]["momentum_buffer"] != 0).all())


def test_without_ascent_it_takes_k_steps_with_one_gradient() -> None:
    bowl = Bowl([[1, 10]], [[1, 0.2]])
    before = bowl.w[0].detach().clone()
    bowl.step(Lookbehind(sgd(bowl), 0.0, k=3, alpha=0.5))
    gradient = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(bowl.w[0], before - 0.5 * 3 * 0.1 * gradient, atol=1e-12)


# Where it stands.


def test_only_the_base_keeps_state_between_steps() -> None:
    bowl = Bowl([[1, 10]], [[1, 0.2]])
    optimizer = Lookbehind(torch.optim.AdamW(bowl.w, lr=0.01), 0.1, k=3)
    bowl.step(optimizer)
    assert not optimizer.state
    assert optimizer.shared_state() == {}
    assert float(optimizer.base.state[bowl.w[0]]["step"]) == 3, "bias correction counts the base's own steps"


def test_state_dict_round_trip_goes_on_bitwise() -> None:
    whole = trained(lambda bowl: Lookbehind(torch.optim.AdamW(bowl.w, lr=0.01), 0.1, k=2), 6)
    bowl = Bowl([[1, 10], [3, 0.5]], [[1, 0.2], [0.5, -1]])
    first = Lookbehind(torch.optim.AdamW(bowl.w, lr=0.01), 0.1, k=2)
    for _ in range(3):
        bowl.step(first)
    second = Lookbehind(torch.optim.AdamW(bowl.w, lr=0.5), 0.1, k=2)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        bowl.step(second)
    assert same([w.detach() for w in bowl.w], whole)


@pytest.mark.parametrize("bad", range(4))
def test_a_gradient_that_is_not_finite_brings_the_slow_weights_back(bad: int) -> None:
    w = nn.Parameter(torch.tensor([1.0, 0.2]))
    before = w.detach().clone()
    optimizer = Lookbehind(torch.optim.SGD([w], lr=0.1), 0.1, k=3)
    passes = 0

    def closure() -> float:
        nonlocal passes
        optimizer.zero_grad()
        loss = (w**2).sum() * (float("inf") if passes == bad else 1.0)
        loss.backward()  # type: ignore[no-untyped-call]
        passes += 1
        return loss.item()

    optimizer.step(closure)
    assert passes == bad + 1, "nothing is evaluated after it"
    assert torch.equal(w, before)
    optimizer.step(closure)
    assert passes == bad + 5
    assert not torch.equal(w, before)


def test_an_average_around_it_takes_the_slow_weights_once_a_step() -> None:
    bowl = Bowl([[1, 10]], [[1, 0.2]])
    optimizer = EMA(Lookbehind(sgd(bowl), 0.1, k=3, alpha=0.3), half_life=1e9)
    slow = []
    for _ in range(3):
        bowl.step(optimizer)
        slow.append(bowl.w[0].detach().clone())
    (fragment,) = optimizer.layout.fragments
    mean = torch.stack(slow).mean(0).float()
    assert torch.allclose(optimizer.evaluation_weights(fragment), mean, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k >= 1"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\] or adaptive"),
        ({"alpha": "auto"}, "or adaptive"),
        ({"scope": "group"}, "tensor or global"),
        ({"rho": -1}, "rho >= 0"),
    ],
)
def test_bad_arguments_name_the_bound(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lookbehind(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), **arguments)
