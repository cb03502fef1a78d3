"""Sums over parameters, however their pieces lie."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.optim import Fragment, Layout, Parameter, Segment


def test_the_layout_of_whole_parameters() -> None:
    a, b, c = torch.zeros(2, 3), torch.zeros(4), torch.zeros(())
    layout = Layout.whole([[("a", a), ("b", b)], [("c", c)]])
    assert layout.parameters == (Parameter("a", (2, 3), 0), Parameter("b", (4,), 0), Parameter("c", (), 1))
    fragment = layout.fragment(b)
    assert fragment is not None
    assert fragment.group == 0
    assert fragment.segments == (Segment(1, 0, 4, 0),)
    assert layout.fragment(torch.zeros(4)) is None


def test_a_segment_is_a_view_and_the_whole_keeps_its_shape() -> None:
    flat = torch.arange(10.0)
    piece = Segment(0, 2, 3, 5).of(flat)
    piece.zero_()
    assert flat.tolist() == [0, 1, 0, 0, 0, 5, 6, 7, 8, 9]
    matrix = torch.zeros(2, 5)
    assert Segment(0, 0, 10, 0).of(matrix).shape == (2, 5)


class Others:
    """Ranks that hold nothing, and count how often they are asked."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked = 0

    def add(self, tensor: torch.Tensor) -> None:
        self.asked += 1


def test_padding_belongs_to_no_sum() -> None:
    flat = torch.tensor([1.0, 2.0, float("nan")])
    layout = Layout((Parameter("a", (2,), 0),), (Fragment(flat, (Segment(0, 0, 2, 0),), 0, (0,)),))
    assert layout.squares((s, s.of(flat)) for s in layout.fragments[0].segments).tolist() == [5.0]


def test_sums_are_reduced_once_and_parameters_of_other_ranks_are_zero_here() -> None:
    others, flat = Others(), torch.ones(3)
    fragment = Fragment(flat, (Segment(1, 0, 3, 0),), 0, (0, 1))
    layout = Layout((Parameter("a", (5,), 0), Parameter("b", (6,), 0)), (fragment,), others)  # type: ignore[arg-type]
    total = layout.products([(fragment.segments[0], flat, 2 * flat)])
    assert total.tolist() == [[0, 0, 0], [3, 6, 12]]
    assert total.dtype == torch.float64
    assert others.asked == 1


def test_a_rank_without_segments_still_joins_the_reduction() -> None:
    others = Others()
    layout = Layout((Parameter("a", (5,), 0),), (), others)  # type: ignore[arg-type]
    assert layout.products([]).tolist() == [[0, 0, 0]]
    assert others.asked == 1


@settings(deadline=None)
@given(st.integers(1, 300_000), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16]))
def test_dot_products_keep_their_digits(numel: int, seed: int, dtype: torch.dtype) -> None:
    """Long sums too: they go on in double precision after every chunk."""
    generator = torch.Generator().manual_seed(seed)
    a, b = ((torch.randn(numel, generator=generator) + 1).to(dtype) for _ in range(2))
    layout = Layout.whole([[("a", a)]])
    found = layout.products([(layout.fragments[0].segments[0], a, b)])[0].tolist()
    pairs = ((a, a), (a, b), (b, b))
    for value, (x, y) in zip(found, pairs, strict=True):
        scale = float((x.double() * y.double()).abs().sum())
        assert value == pytest.approx(float(x.double() @ y.double()), abs=1e-6 * scale)
