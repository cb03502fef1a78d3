"""Schedule-Free AdamW and SGD against the paper's three sequences, in their limits, and where they are evaluated."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.pretend import PretendRanks, cut, joined, piece_of, together
from torch import Tensor, nn

from lowland.optim import EMA, Mixed, ScheduleFreeAdamW, ScheduleFreeSGD
from lowland.optim.point import OwnWeights, Point

METHODS = {"adamw": ScheduleFreeAdamW, "sgd": ScheduleFreeSGD}
Gradient = Callable[[float], float]


class Paper:
    """The three sequences of one number, as the paper has them."""

    def __init__(self, start: float, *, beta: float, adam: bool, decay: float = 0.0, r: float = 0.0) -> None:
        self.x = self.z = start
        self.beta, self.adam, self.decay, self.r = beta, adam, decay, r
        self.v = self.total = self.largest = 0.0
        self.t = 0

    @property
    def y(self) -> float:
        return (1 - self.beta) * self.z + self.beta * self.x

    def step(self, gradient: float, lr: float) -> None:
        self.t += 1
        y = self.y
        self.v = 0.99 * self.v + 0.01 * gradient**2
        direction = gradient / (math.sqrt(self.v / (1 - 0.99**self.t)) + 1e-8) if self.adam else gradient
        self.z -= lr * (direction + self.decay * y)
        self.largest = max(self.largest, lr)
        weight = self.t**self.r * self.largest**2
        self.total += weight
        self.x += weight / self.total * (self.z - self.x)


def make(name: str, params: Any, beta: float = 0.9, **arguments: Any) -> ScheduleFreeAdamW | ScheduleFreeSGD:
    if name == "adamw":
        return ScheduleFreeAdamW(params, betas=(beta, 0.99), **arguments)
    return ScheduleFreeSGD(params, beta=beta, **arguments)


def average(optimizer: Any, p: Tensor) -> Tensor:
    found: Tensor = optimizer.evaluation_weights(optimizer.layout.fragment(p))
    return found


def step(optimizer: torch.optim.Optimizer, p: nn.Parameter, gradient: Tensor) -> None:
    p.grad = gradient.clone()
    optimizer.step()


@pytest.mark.parametrize("r", [0.0, 1.0])
@pytest.mark.parametrize("beta", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", METHODS)
def test_like_the_paper_s_sequences_through_a_warm_up(name: str, beta: float, r: float) -> None:
    """Gradients depend on y, so that an error would grow."""
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = make(name, [p], beta, lr=0.1, weight_decay=0.1, r=r)
    paper = Paper(1.0, beta=beta, adam=name == "adamw", decay=0.1, r=r)
    for number in range(30):
        lr = 0.1 * min(1.0, (number + 1) / 5)
        optimizer.param_groups[0]["lr"] = lr
        step(optimizer, p, 3 * (p.detach() - 0.5) + 0.3 * math.sin(number))
        paper.step(3 * (paper.y - 0.5) + 0.3 * math.sin(number), lr)
        assert p.item() == pytest.approx(paper.y, abs=2e-6)
        assert optimizer.state[p]["z"].item() == pytest.approx(paper.z, abs=2e-6)
        assert average(optimizer, p).item() == pytest.approx(paper.x, abs=2e-6)


def test_sgd_worked_out_by_hand() -> None:
    """beta = 1/2, eta = 1, g = 1, -1, 2: z = -1, 0, -2; x = -1, -1/2, -1; y is the middle of both."""
    p = nn.Parameter(torch.zeros(1))
    optimizer = ScheduleFreeSGD([p], lr=1.0, beta=0.5)
    found = []
    for gradient in (1.0, -1.0, 2.0):
        step(optimizer, p, torch.tensor([gradient]))
        found.append((optimizer.state[p]["z"].item(), average(optimizer, p).item(), p.item()))
    assert found == [pytest.approx(row, abs=1e-6) for row in [(-1, -1, -1), (0, -0.5, -0.25), (-2, -1, -1.5)]]


@pytest.mark.parametrize("name", METHODS)
def test_at_a_constant_rate_it_is_evaluated_at_the_plain_mean_of_z(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(6, generator=generator))
    optimizer = make(name, [p], lr=0.05)
    visited = []
    for _ in range(20):
        step(optimizer, p, torch.randn(6, generator=generator))
        visited.append(optimizer.state[p]["z"].clone())
    assert torch.allclose(average(optimizer, p), torch.stack(visited).mean(0), atol=1e-6)


def test_primal_averaging_takes_gradients_at_the_average() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = ScheduleFreeSGD([p], lr=0.1, beta=1.0)
    for number in range(5):
        step(optimizer, p, torch.full((3,), float(number)))
        assert torch.equal(average(optimizer, p), p.detach())


def test_a_small_beta_is_sgd_and_polyak_s_average() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer, sgd = ScheduleFreeSGD([p], lr=0.1, beta=1e-3), torch.optim.SGD([q], lr=0.1)
    visited = []
    for _ in range(10):
        gradient = torch.randn(4, generator=generator)
        step(optimizer, p, gradient)
        step(sgd, q, gradient)
        visited.append(q.detach().clone())
    assert torch.allclose(optimizer.state[p]["z"], q, atol=1e-6)
    assert torch.allclose(average(optimizer, p), torch.stack(visited).mean(0), atol=1e-3)


def test_a_step_at_rate_zero_moves_nothing() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = ScheduleFreeAdamW([p], lr=0.0)
    step(optimizer, p, torch.ones(2))
    assert p.tolist() == average(optimizer, p).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", METHODS)
def test_shown_and_taken_back_to_the_bit(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    p = nn.Parameter(torch.randn(9, generator=generator))
    optimizer = make(name, [p], lr=0.03)
    point = Point(optimizer, OwnWeights(optimizer, optimizer.layout))
    for taken in range(4):
        before = p.detach().clone()
        expected = average(optimizer, p).clone()
        with point.at_evaluation_weights():
            assert torch.equal(p, expected)
            assert torch.equal(p, before) == (taken <= 1), "y and x part with the second step"
        assert torch.equal(p, before)
        step(optimizer, p, torch.randn(9, generator=generator))


@pytest.mark.parametrize("name", METHODS)
def test_before_the_first_step_it_is_evaluated_where_it_starts(name: str) -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make(name, [p], lr=0.1)
    assert torch.equal(average(optimizer, p), p.detach())
    optimizer.create_state()
    assert torch.equal(average(optimizer, p), p.detach())


def test_a_step_that_is_not_applied_changes_nothing() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = ScheduleFreeSGD([p], lr=0.1)
    step(optimizer, p, torch.ones(2))
    before, weights = optimizer.shared_state(), p.detach().clone()
    optimizer.prepare(optimizer.layout.gradients())
    optimizer.finish()
    assert optimizer.shared_state() == before
    assert torch.equal(p, weights)
    step(optimizer, p, torch.ones(2))
    assert optimizer.shared_state()["0/average_steps"] == 2


@pytest.mark.parametrize("name", METHODS)
def test_state_by_name_goes_on_to_the_bit(name: str) -> None:
    """As an engine restores it: tensors and counts of each parameter, and what belongs to none."""
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(8, 5, generator=generator)
    p = nn.Parameter(torch.ones(5))
    optimizer = make(name, [p], lr=0.03)
    for gradient in gradients[:4]:
        step(optimizer, p, gradient)
    q = nn.Parameter(p.detach().clone())
    restored = make(name, [q], lr=0.03)
    restored.create_state()
    for key, value in restored.state[q].items():
        value.copy_(optimizer.state[p][key])
    restored.load_shared_state(optimizer.shared_state())
    for gradient in gradients[4:]:
        step(optimizer, p, gradient)
        step(restored, q, gradient)
    assert torch.equal(p, q)
    assert torch.equal(average(optimizer, p), average(restored, q))


def test_groups_that_are_shown_one_by_one_are_one_step() -> None:
    """As ZeRO steps them; the average counts the step once."""
    whole, parts = ([nn.Parameter(torch.ones(2)) for _ in range(2)] for _ in range(2))
    reference, optimizer = (
        ScheduleFreeAdamW([{"params": [a]}, {"params": [b], "lr": 0.2}], lr=0.1) for a, b in (whole, parts)
    )
    generator = torch.Generator().manual_seed(4)
    for _ in range(5):
        gradient = torch.randn(2, generator=generator)
        for p in (*whole, *parts):
            p.grad = gradient.clone()
        reference.step()
        optimizer.prepare(optimizer.layout.gradients())
        groups = optimizer.param_groups
        for group in groups:
            optimizer.param_groups = [group]
            optimizer.step()
        optimizer.param_groups = groups
        optimizer.finish()
    assert all(torch.equal(p, q) for p, q in zip(whole, parts, strict=True))
    assert optimizer.shared_state() == reference.shared_state()
    assert optimizer.shared_state()["1/average_steps"] == 5


@given(st.data())
def test_any_cut_over_ranks_is_the_same_to_the_bit(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    size, total = data.draw(st.integers(1, 3)), sum(sizes)
    bounds = [0, *sorted(data.draw(st.lists(st.integers(0, total), min_size=size - 1, max_size=size - 1))), total]
    name = data.draw(st.sampled_from(list(METHODS)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    start, *gradients = ([torch.randn(n, generator=generator) for n in sizes] for _ in range(4))
    whole = nn.Parameter(torch.cat(start))
    reference = make(name, [whole], lr=0.1)
    for row in gradients:
        step(reference, whole, torch.cat(row))

    def rank(ranks: PretendRanks) -> tuple[Tensor, Tensor]:
        flat, layout = cut({str(i): tensor for i, tensor in enumerate(start)}, bounds, ranks)
        optimizer = make(name, [flat], lr=0.1)
        optimizer.attach(layout)
        for row in gradients:
            step(optimizer, flat, piece_of(row, bounds, ranks.rank))
        shown = optimizer.evaluation_weights(layout.fragments[0])
        return flat.detach(), torch.cat([shown[: len(shown) - 3], flat.detach()[len(shown) - 3 :]])

    found = together(size, rank)
    assert torch.allclose(joined([y for y, _ in found]), whole.detach(), rtol=0, atol=1e-7)
    assert torch.allclose(joined([x for _, x in found]), average(reference, whole), rtol=0, atol=1e-6)


def test_inside_other_optimizers() -> None:
    """A moving average is taken over what it would be evaluated at; beside another optimizer each keeps its own."""
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    base = ScheduleFreeSGD([p], lr=0.1)
    averaged = EMA(base, half_life=1e-3)
    for _ in range(4):
        step(averaged, p, torch.ones(2))
    assert torch.allclose(average(averaged, p), average(base, p))
    mixed = Mixed([torch.optim.SGD([q], lr=0.1), ScheduleFreeSGD([p], lr=0.1)])
    p.grad = q.grad = torch.ones(2)
    mixed.step()
    assert "1/0/average_sum" in mixed.shared_state()


@pytest.mark.parametrize(("argument", "value"), [("beta", 0.0), ("beta", 1.1), ("r", -1.0), ("rate_power", -1.0)])
def test_what_cannot_be_is_refused_by_name(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{argument}.*{value}"):
        ScheduleFreeSGD([nn.Parameter(torch.zeros(1))], lr=0.1, **{argument: value})
