"""Several optimizers as one."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland.optim import EMA, SAM, TAM, AdaTAMW, Fragment, Layout, LayoutOptimizer, Mixed, Parameter, Segment, Whole
from lowland.trainers.engines import state


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for number in steps:
        for index, p in enumerate(params):
            p.grad = torch.sin(torch.arange(p.numel()).float() + index + number).view_as(p)
        optimizer.step()


def equal(ones: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


def members(params: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Three that see elements, sums, and whole tensors."""
    return [
        torch.optim.AdamW(params[:1], lr=1e-2),
        TAM(params[1:3], lr=1e-2),
        Whole(params[3:], lambda groups: torch.optim.Adafactor(groups, lr=1e-2)),
    ]


SHAPES = ((3, 4), (5,), (2, 2), (4, 3))


def test_each_member_steps_its_own_as_if_alone() -> None:
    together, alone = parameters(*SHAPES), parameters(*SHAPES)
    run(Mixed(members(together)), together, range(6))
    for member in members(alone):
        run(member, alone, range(6))
    assert equal(together, alone)


def test_groups_are_the_members_own_and_a_rate_set_in_them_is_theirs() -> None:
    p, q = parameters((2,), (2,))
    member = torch.optim.SGD([q], lr=1.0)
    optimizer = Mixed([AdaTAMW([p], lr=1e-3), member])
    assert optimizer.param_groups[1] is member.param_groups[0]
    state.set_lr(optimizer, 0.5)
    before = q.detach().clone()
    q.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(q, before - 0.5)


def test_sums_go_over_the_members_own_parameters() -> None:
    """The cosine of TAM over its part alone; a parameter of another member would change it."""
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    tam = TAM([p], lr=0.1)
    optimizer = Mixed([TAM([q], lr=0.1), tam])
    for gradient in ([1.0, 0.0], [-1.0, 0.0]):
        p.grad, q.grad = torch.tensor(gradient), torch.tensor([100.0, 0.0])
        optimizer.step()
    assert tam.cosines["global"] == pytest.approx(-0.1)
    assert optimizer.shared_state() == {"0/global": pytest.approx(0.1), "1/global": pytest.approx(-0.1)}
    assert state.metrics(optimizer) == {"0/cosine": pytest.approx(0.1), "1/cosine": pytest.approx(-0.1)}


def test_groups_may_be_shown_one_at_a_time_in_fragments() -> None:
    """As ZeRO does: one tensor per group, with padding, and each group in a call of its own."""
    whole = parameters(*SHAPES)
    expected = Mixed(members(whole))
    source = parameters(*SHAPES)
    flats = [
        nn.Parameter(torch.cat([p.detach().reshape(-1) for p in part] + [torch.full((2,), torch.nan)]))
        for part in (source[:1], source[1:3], source[3:])
    ]
    optimizer = Mixed(members(source))
    layout = flat_layout(source, flats)
    for group, flat in zip(optimizer.param_groups, flats, strict=True):
        group["params"] = [flat]
    optimizer.attach(layout)
    for number in range(5):
        run(expected, whole, range(number, number + 1))
        for flat, part in zip(flats, (whole[:1], whole[1:3], whole[3:]), strict=True):
            flat.grad = torch.cat([p.grad.reshape(-1) for p in part if p.grad is not None] + [torch.zeros(2)])
        optimizer.prepare(layout.gradients())
        groups = optimizer.param_groups
        for group in groups:
            optimizer.param_groups = [group]
            optimizer.step()
        optimizer.param_groups = groups
        optimizer.finish()
    found = torch.cat([flat.detach()[:-2] for flat in flats])
    assert torch.allclose(found, torch.cat([p.detach().reshape(-1) for p in whole]), atol=1e-6)


def flat_layout(source: list[nn.Parameter], flats: list[nn.Parameter]) -> Layout:
    described = tuple(
        Parameter(str(i), tuple(p.shape), group) for (i, p), group in zip(enumerate(source), (0, 1, 1, 2), strict=True)
    )
    segments = (
        (Segment(0, 0, 12, 0),),
        (Segment(1, 0, 5, 0), Segment(2, 5, 4, 0)),
        (Segment(3, 0, 12, 0),),
    )
    held = ((0,), (1, 2), (3,))
    fragments = [Fragment(flats[i], segments[i], i, held[i]) for i in range(3)]
    return Layout(described, tuple(fragments), by_group=True)


def test_a_resume_goes_on_to_the_bit() -> None:
    first, second = parameters(*SHAPES), parameters(*SHAPES)
    one = EMA(Mixed(members(first)), 3)
    run(one, first, range(4))
    two = EMA(Mixed(members(second)), 3)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for p, q in zip(first, second, strict=True):
        q.data.copy_(p.data)
    state.set_lr(one, 0.5)
    state.set_lr(two, 0.5)
    run(one, first, range(4, 8))
    run(two, second, range(4, 8))
    assert equal(first, second)


def test_states_are_made_before_a_step_and_change_no_weight() -> None:
    params = parameters(*SHAPES)
    kept = [p.detach().clone() for p in params]
    optimizer = Mixed(members(params))
    state.create_state(optimizer, optimizer.layout)
    pieces = {piece.name: {*piece.tensors, *piece.scalars} for piece in state.pieces_of(optimizer, optimizer.layout)}
    assert list(pieces.values())[:3] == [
        {"weight", "exp_avg", "exp_avg_sq", "step"}, {"weight", "exp_avg"}, {"weight", "exp_avg"}
    ]  # fmt: skip
    assert all(torch.equal(p, q) for p, q in zip(params, kept, strict=True))


class Elsewhere(LayoutOptimizer):
    """Evaluated at zero."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0})

    def evaluation_weights(self, fragment: Fragment) -> Tensor:
        return torch.zeros_like(fragment.tensor)


def test_a_member_says_where_its_own_parameters_are_evaluated() -> None:
    p, q = parameters((2,), (3,))
    plain = torch.optim.SGD([p], lr=1.0)
    assert Mixed([plain]).evaluation_weights is None
    optimizer = Mixed([plain, Elsewhere([q])])
    find = optimizer.evaluation_weights
    assert find is not None
    assert torch.equal(find(optimizer.layout.fragments[0]), p.detach())
    assert torch.equal(find(optimizer.layout.fragments[1]), torch.zeros(3))


def test_what_takes_several_gradients_belongs_around_all() -> None:
    p, q = parameters((2,), (2,))
    with pytest.raises(TypeError, match="SAM cannot be a member: put it around the mixed optimizer"):
        Mixed([torch.optim.SGD([p], lr=1.0), SAM(torch.optim.SGD([q], lr=1.0))])
    with pytest.raises(ValueError, match="more than one parameter group"):
        Mixed([torch.optim.SGD([p], lr=1.0), torch.optim.SGD([p], lr=1.0)])


def test_a_step_of_several_passes_is_averaged_once_and_at_its_end() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = EMA(SAM(torch.optim.SGD([p], lr=0.1), rho=0.5), 1e6)
    seen = []
    for number in range(3):

        def closure(number: int = number) -> float:
            optimizer.zero_grad()
            loss = (p * p).sum() * (1 + math.sin(number))
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)
        seen.append(p.detach().clone())
    assert optimizer.shared_state()["steps"] == 3
    average = optimizer.evaluation_weights(optimizer.layout.fragments[0])
    assert torch.allclose(average, torch.stack(seen).mean(0), atol=1e-5)


def test_a_group_that_is_no_members_is_refused() -> None:
    p, q = parameters((2,), (2,))
    optimizer = Mixed([torch.optim.SGD([p], lr=1.0)])
    with pytest.raises(ValueError, match="has the groups of its members"):
        optimizer.add_param_group({"params": [q]})
