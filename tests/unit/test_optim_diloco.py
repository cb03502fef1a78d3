"""The outer step: by hand, and its limits."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.diloco import several_groups
from support.processes import run_ranks
from torch import Tensor, nn

from lowland.optim import EMA, SAM, DiLoCo, Lookbehind, evaluation_weights


def run(optimizer: torch.optim.Optimizer, p: nn.Parameter, steps: range) -> list[Tensor]:
    """The weights after each step, with gradients that turn."""
    found = []
    for number in steps:
        p.grad = torch.tensor([math.sin(number + i) for i in range(p.numel())])
        optimizer.step()
        found.append(p.detach().clone())
    return found


def test_two_rounds_worked_out_by_hand() -> None:
    """SGD of rate 1 on a gradient of -1, H = 2, eta = 0.5, mu = 0.5.

    Round 1: Delta = -2, v = -2, theta = 0 - 0.5 (-2 - 1) = 1.5.  Round 2: Delta = -2, v = -3, theta = 1.5 + 0.5 * 3.5.
    """
    p = nn.Parameter(torch.zeros(1))
    optimizer = DiLoCo(torch.optim.SGD([p], lr=1.0), every=2, lr=0.5, momentum=0.5)
    found = []
    for _ in range(4):
        p.grad = torch.tensor([-1.0])
        optimizer.step()
        found.append(p.item())
    assert found == [1.0, 1.5, 2.5, 3.25]
    assert optimizer.state[p]["outer_momentum"].item() == -3.0


@given(st.integers(1, 7))
def test_outer_rate_one_without_momentum_is_the_base_to_the_bit(every: int) -> None:
    p, q = nn.Parameter(torch.randn(5)), nn.Parameter(torch.zeros(5))
    q.data.copy_(p.data)
    wrapped = DiLoCo(torch.optim.AdamW([p], lr=0.1), every=every, lr=1.0, momentum=0.0)
    assert torch.equal(
        torch.stack(run(wrapped, p, range(20))), torch.stack(run(torch.optim.AdamW([q], lr=0.1), q, range(20)))
    )


@given(st.floats(0.1, 1.5), st.integers(1, 5))
def test_without_momentum_it_is_lookahead(rate: float, every: int) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    found = run(DiLoCo(torch.optim.SGD([p], lr=0.1), every=every, lr=rate, momentum=0.0), p, range(3 * every))
    fast, slow = torch.optim.SGD([q], lr=0.1), torch.ones(3)
    for round_ in range(3):
        run(fast, q, range(round_ * every, (round_ + 1) * every))
        slow = slow + rate * (q.detach() - slow)
        q.data.copy_(slow)
    assert torch.allclose(found[-1], slow, atol=1e-6)


def ascending(inside: str, p: nn.Parameter) -> torch.optim.Optimizer:
    base = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    return SAM(base, rho=0.2) if inside == "sam" else Lookbehind(base, rho=0.2, k=3, alpha=0.4)


def descend(optimizer: torch.optim.Optimizer, p: nn.Parameter, steps: int) -> list[Tensor]:
    """The weights after each step on a quadratic, where each step takes several gradients."""

    def closure() -> float:
        optimizer.zero_grad()
        loss = (p * p * torch.arange(1.0, 4.0)).sum()
        loss.backward()
        return float(loss.detach())

    found = []
    for _ in range(steps):
        optimizer.step(closure)
        found.append(p.detach().clone())
    return found


@pytest.mark.parametrize("inside", ["sam", "lookbehind"])
def test_steps_of_several_passes_count_once_and_when_they_have_ended(inside: str) -> None:
    p, q, r = (nn.Parameter(torch.ones(3)) for _ in range(3))
    plain = descend(ascending(inside, q), q, 6)
    same = DiLoCo(ascending(inside, p), every=2, lr=1.0, momentum=0.0)
    assert torch.equal(torch.stack(descend(same, p, 6)), torch.stack(plain))
    outer = EMA(DiLoCo(ascending(inside, r), every=2, lr=0.5, momentum=0.0), 1e9)
    found = descend(outer, r, 3)
    assert torch.equal(found[0], plain[0])
    assert torch.allclose(found[1], 1 + 0.5 * (plain[1] - 1))
    assert outer.shared_state()["base/steps"] == outer.shared_state()["steps"] == 3
    anchors = torch.stack([torch.ones(3), found[1], found[1]])
    assert torch.allclose(outer.evaluation_weights(outer.layout.fragments[0]), anchors.mean(0), atol=1e-6)


def test_it_is_evaluated_at_the_last_outer_step() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = DiLoCo(torch.optim.SGD([p], lr=0.1), every=3, lr=0.7)
    find = evaluation_weights(optimizer)
    assert find is not None
    fragment = optimizer.layout.fragments[0]
    assert torch.equal(find(fragment), torch.ones(3))
    after = run(optimizer, p, range(5))
    assert torch.equal(find(fragment), after[2])
    assert not torch.equal(after[4], after[2])


@pytest.mark.parametrize("stop", [3, 4, 5], ids="after {} steps".format)
def test_a_resume_inside_a_round_goes_on_to_the_bit(stop: int) -> None:
    def make(p: nn.Parameter) -> DiLoCo:
        return DiLoCo(torch.optim.AdamW([p], lr=0.1), every=4, lr=0.6)

    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    first, second = make(p), make(q)
    run(first, p, range(stop))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    q.data.copy_(p.data)
    assert torch.equal(torch.stack(run(first, p, range(stop, 12))), torch.stack(run(second, q, range(stop, 12))))


def test_a_parameter_without_a_gradient_at_the_outer_step_takes_part() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = DiLoCo(torch.optim.SGD([p], lr=1.0), every=2, lr=0.5, momentum=0.0)
    p.grad = torch.tensor([-4.0])
    optimizer.step()
    p.grad = None
    optimizer.step()
    assert p.item() == 2.0


@pytest.mark.parametrize("arguments", [{"every": 0}, {"lr": 0.0}, {"momentum": 1.0}, {"groups": 0}], ids=str)
def test_refusals(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DiLoCo(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **arguments)


def test_groups_that_cannot_be_are_refused() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = DiLoCo(torch.optim.SGD([p], lr=1.0), every=1, groups=2)
    p.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match=r"groups \(2\) must divide the number of ranks, which is 1"):
        optimizer.step()


@pytest.mark.processes
def test_two_groups_take_the_mean_of_their_movements() -> None:
    first, second = run_ranks(2, several_groups)
    assert first == second
    assert first["one"] == [4.0, -5.0], "H = 1, eta = 1, mu = 0 is SGD on the mean gradient"
    # Delta of the second element: the mean of 0 and 1 + 2, then of 0 and 3 + 4.
    v1 = 1.5
    theta1 = -0.5 * (1.5 + 0.5 * v1)
    v2 = 0.5 * v1 + 3.5
    assert first["two"] == pytest.approx([3.25, theta1 - 0.5 * (3.5 + 0.5 * v2)])
