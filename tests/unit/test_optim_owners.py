"""Whole tensors at their owners, however the pieces lie, and optimizers that step them there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pretend import PretendRanks, cut, joined, piece_of, together
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.optim import SOAP, Layout, Owners, RotatedAdam, WeightSharing, Whole
from lowland.optim.methods import METHODS as METHODS_BY_NAME

SHAPES = {"a.weight": (5, 3), "a.bias": (5,), "b.weight": (2, 3, 2), "b.scale": (), "c.weight": (4, 7), "c.bias": (1,)}
TOTAL = sum(torch.Size(shape).numel() for shape in SHAPES.values())

CUTS = ([0, 25, TOTAL], [0, 7, 7, 41, TOTAL])
"""Bounds that cut through tensors, with a rank that holds nothing in the second."""


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@st.composite
def cuts(draw: Any) -> list[int]:
    """Bounds of the pieces of one to four ranks, some of which may hold nothing."""
    inner = draw(st.lists(st.integers(0, TOTAL), max_size=3))
    return [0, *sorted(inner), TOTAL]


@settings(max_examples=60)
@given(cuts(), st.integers(0, 2**31))
def test_there_and_back_for_any_cut(bounds: list[int], seed: int) -> None:
    named = tensors(seed)

    def round_trip(ranks: PretendRanks) -> tuple[dict[int, Tensor], bool]:
        flat, layout = cut(named, bounds, ranks)
        owners, members = Owners(layout), range(len(named))
        pieces = {segment: segment.of(flat.data) for segment in layout.fragments[0].segments}
        whole = owners.gather(members, pieces)
        assert set(whole) == {i for i in members if owners.owns(i)}
        back = owners.scatter(members, {i: tensor + 1 for i, tensor in whole.items()})
        assert back.keys() == pieces.keys()
        return whole, all(torch.equal(back[s], piece.reshape(-1) + 1) for s, piece in pieces.items())

    found = together(len(bounds) - 1, round_trip)
    assert all(intact for _, intact in found)
    held = [index for whole, _ in found for index in whole]
    assert sorted(held) == list(range(len(named)))
    values = list(named.values())
    for whole, _ in found:
        for index, tensor in whole.items():
            assert torch.equal(tensor, values[index])


def test_some_of_the_tensors_alone() -> None:
    named, bounds = tensors(0), [0, 17, 40, TOTAL]

    def gather(ranks: PretendRanks) -> dict[int, Tensor]:
        flat, layout = cut(named, bounds, ranks)
        pieces = {s: s.of(flat.data) for s in layout.fragments[0].segments if s.parameter in (1, 4)}
        return Owners(layout).gather([1, 4], pieces)

    found: dict[int, Tensor] = {}
    for whole in together(3, gather):
        found |= whole
    assert found.keys() == {1, 4}
    assert torch.equal(found[4], named["c.weight"])


def test_the_load_is_spread() -> None:
    named = {f"{i}": torch.zeros(10) for i in range(8)}

    def owned(ranks: PretendRanks) -> int:
        _, layout = cut(named, [0, 80, 80, 80, 80], ranks)
        return sum(Owners(layout).owns(i) for i in range(8))

    assert together(4, owned) == [2, 2, 2, 2]


def test_where_nothing_is_sharded_everybody_owns_all() -> None:
    weight = torch.randn(3, 2)
    layout = Layout.whole([[("w", weight)]])
    owners = Owners(layout)
    segment = layout.fragments[0].segments[0]
    assert owners.owns(0)
    assert owners.gather([0], {segment: weight})[0].shape == (3, 2)
    assert torch.equal(owners.scatter([0], {0: weight * 2})[segment], weight * 2)


METHODS: dict[str, Callable[[Any], Optimizer]] = {
    "adafactor": lambda params: Whole(params, lambda groups: torch.optim.Adafactor(groups, lr=1e-2)),
    "soap": lambda params: Whole(params, lambda groups: SOAP(groups, lr=1e-2, precondition_frequency=2)),
    **{
        f"rotated-{basis}": lambda params, basis=basis: Whole(
            params, lambda groups: RotatedAdam(groups, lr=1e-2, basis=basis, block=4, refresh=2, diagnose=1)
        )
        for basis in ("standard", "output", "input", "layer", "svd")
    },
    "weight sharing": lambda params: WeightSharing(torch.optim.SGD(params, lr=0.1), 0.5, l1=1e-2, damping=0.3),
    "weight sharing around a whole one": lambda params: WeightSharing(
        Whole(params, lambda groups: SOAP(groups, lr=1e-2)), 0.5, tensors="bias"
    ),
}


def trajectory(make: Callable[[Any], Optimizer], steps: int, *, bounds: list[int] | None = None) -> Tensor:
    """Where an optimizer ends, on whole tensors or on pieces, from the same gradients."""
    named, gradients = tensors(1), [tensors(100 + i) for i in range(steps)]
    if bounds is None:
        whole = {name: nn.Parameter(tensor) for name, tensor in named.items()}
        optimizer = make(whole.items())
        for gradient in gradients:
            for name, p in whole.items():
                p.grad = gradient[name].clone()
            optimizer.step()
        return torch.cat([p.detach().reshape(-1) for p in whole.values()])

    def train(ranks: PretendRanks) -> Tensor:
        flat, layout = cut(named, bounds, ranks)
        optimizer = make([flat])
        optimizer.attach(layout)  # type: ignore[attr-defined]
        for gradient in gradients:
            flat.grad = piece_of(list(gradient.values()), bounds, ranks.rank)
            optimizer.step()
        return flat.detach()

    return joined(together(len(bounds) - 1, train))


def test_muon_on_pieces_of_matrices() -> None:
    """Its iteration in bfloat16 gives the same bits, since it gets the same matrices."""
    torch.manual_seed(0)
    named, gradient = ({"a": torch.randn(5, 3), "b": torch.randn(4, 7)} for _ in range(2))
    whole = {name: nn.Parameter(tensor.clone()) for name, tensor in named.items()}
    alone = torch.optim.Muon(list(whole.items()), lr=0.1)
    for name, p in whole.items():
        p.grad = gradient[name].clone()
    alone.step()
    bounds = [0, 11, 20, 43]

    def train(ranks: PretendRanks) -> Tensor:
        flat, layout = cut(named, bounds, ranks)
        optimizer = METHODS_BY_NAME["muon"].make([nn.Parameter(torch.zeros(5, 3))], lr=0.1, weight_decay=0.1)
        optimizer.param_groups[0]["params"] = [flat]  # as ZeRO does
        optimizer.attach(layout)  # type: ignore[attr-defined]
        flat.grad = piece_of(list(gradient.values()), bounds, ranks.rank)
        optimizer.step()
        return flat.detach()

    assert torch.equal(joined(together(3, train)), torch.cat([p.detach().reshape(-1) for p in whole.values()]))


@pytest.mark.parametrize("method", METHODS)
def test_an_optimizer_of_whole_tensors_ends_at_the_same_bits_on_pieces(method: str) -> None:
    expected = trajectory(METHODS[method], 5)
    moved = (expected - torch.cat([t.reshape(-1) for t in tensors(1).values()])).norm()
    assert moved > 1e-2
    for bounds in ([0, TOTAL], *CUTS):
        assert torch.equal(trajectory(METHODS[method], 5, bounds=bounds), expected), bounds


def test_owned_state_goes_on_at_other_owners() -> None:
    """Kept at two ranks, read by three: as a checkpoint does."""
    named, gradients = tensors(1), [tensors(100 + i) for i in range(6)]
    make = METHODS["soap"]

    def part(
        weights: Tensor, bounds: list[int], some: list[dict[str, Tensor]], kept: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        sizes = [tensor.numel() for tensor in named.values()]
        now = {
            name: piece.view(tensor.shape)
            for (name, tensor), piece in zip(named.items(), weights.split(sizes), strict=True)
        }

        def train(ranks: PretendRanks) -> tuple[Tensor, dict[str, Any]]:
            flat, layout = cut(now, bounds, ranks)
            optimizer = make([flat])
            assert isinstance(optimizer, Whole)
            optimizer.attach(layout)
            optimizer.load_owned_state(lambda name: dict(kept.get(name, {})))
            for gradient in some:
                flat.grad = piece_of(list(gradient.values()), bounds, ranks.rank)
                optimizer.step()
            return flat.detach(), optimizer.owned_state()

        found = together(len(bounds) - 1, train)
        return joined([piece for piece, _ in found]), {k: v for _, state in found for k, v in state.items()}

    start = torch.cat([tensor.reshape(-1) for tensor in named.values()])
    half, kept = part(start, [0, 30, TOTAL], gradients[:3], {})
    assert kept.keys() == named.keys()
    end, _ = part(half, [0, 11, 55, TOTAL], gradients[3:], kept)
    assert torch.equal(end, trajectory(make, 6))


def test_measures_are_means_over_the_tensors_of_all_ranks() -> None:
    named, gradient = tensors(1), tensors(2)
    make = METHODS["rotated-output"]
    whole = {name: nn.Parameter(tensor) for name, tensor in named.items()}
    alone = make(whole.items())
    for name, p in whole.items():
        p.grad = gradient[name]
    alone.step()
    bounds = [0, 20, 50, TOTAL]

    def measure(ranks: PretendRanks) -> dict[str, float]:
        flat, layout = cut(named, bounds, ranks)
        optimizer = make([flat])
        assert isinstance(optimizer, Whole)
        optimizer.attach(layout)
        flat.grad = piece_of(list(gradient.values()), bounds, ranks.rank)
        optimizer.step()
        return optimizer.metrics()

    assert isinstance(alone, Whole)
    expected = alone.metrics()
    assert len(expected) == 3
    for found in together(len(bounds) - 1, measure):
        assert found == pytest.approx(expected, rel=1e-6)


class _WithHistory(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["history"] = [p.grad]


def test_state_that_no_checkpoint_can_hold_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = Whole([("w", p)], _WithHistory)
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(TypeError, match="_WithHistory keeps history as list: a checkpoint can hold tensors"):
        optimizer.owned_state()
