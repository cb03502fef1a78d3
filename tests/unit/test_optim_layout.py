"""Sums over parameters, however their pieces lie."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.optim import Fragment, Layout, Parameter, Segment


def test_the_layout_of_whole_parameters() -> None:
    a, b, c = torch.zeros(2, 3), torch.zeros(4), torch.zeros(())
    layout = Layout.whole([[("a", a), ("b", b)], [("c", c)]])
    assert layout.parameters == (Parameter("a", 6, 0), Parameter("b", 4, 0), Parameter("c", 1, 1))
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


def test_padding_belongs_to_no_sum() -> None:
    flat = torch.tensor([1.0, 2.0, float("nan")])
    layout = Layout((Parameter("a", 2, 0),), (Fragment(flat, (Segment(0, 0, 2, 0),), 0),))
    products = [(s, ((s.of(flat), s.of(flat)),)) for s in layout.fragments[0].segments]
    assert layout.sums(products, columns=1).tolist() == [[5.0]]


def test_sums_are_reduced_once_and_parameters_of_other_ranks_are_zero_here() -> None:
    calls = []
    flat = torch.ones(3)
    fragment = Fragment(flat, (Segment(1, 0, 3, 0),), 0)
    layout = Layout((Parameter("a", 5, 0), Parameter("b", 6, 0)), (fragment,), all_reduce=calls.append)
    total = layout.sums([(fragment.segments[0], ((flat, flat), (flat, 2 * flat)))], columns=2)
    assert total.tolist() == [[0, 0], [3, 6]]
    assert total.dtype == torch.float64
    assert len(calls) == 1


def test_a_rank_without_segments_still_joins_the_reduction() -> None:
    calls = []
    layout = Layout((Parameter("a", 5, 0),), (), all_reduce=calls.append)
    assert layout.sums([], columns=3).tolist() == [[0, 0, 0]]
    assert len(calls) == 1


@settings(deadline=None)
@given(st.integers(1, 300_000), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16]))
def test_dot_products_keep_their_digits(numel: int, seed: int, dtype: torch.dtype) -> None:
    """Long sums too: they go on in double precision after every chunk."""
    generator = torch.Generator().manual_seed(seed)
    a, b = ((torch.randn(numel, generator=generator) + 1).to(dtype) for _ in range(2))
    layout = Layout.whole([[("a", a)]])
    found = layout.sums([(layout.fragments[0].segments[0], ((a, b),))], columns=1).item()
    scale = float((a.double() * b.double()).abs().sum())
    assert found == pytest.approx(float(a.double() @ b.double()), abs=1e-6 * scale)
