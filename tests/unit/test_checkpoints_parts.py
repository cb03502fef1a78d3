"""Parts are read by parameter and range, whichever ranks wrote them."""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.optim import Segment
from lowland.trainers.checkpoints.parts import (
    PartReader,
    generator_states,
    part_name,
    read_rng,
    restore_generators,
    write_part,
)
from lowland.trainers.engines import StatePiece
from lowland.trainers.errors import DataError


def piece(name: str, whole: int, offset: int, values: torch.Tensor, **scalars: torch.Tensor) -> StatePiece:
    states = {"weight": values, "exp_avg": values * 2}
    return StatePiece(name, whole, Segment(0, 0, values.numel(), offset), states, scalars)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_cut_is_read_by_any_other_cut(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 40))
    cut = st.sets(st.integers(1, size), max_size=4).map(lambda inner: sorted({0, size} | inner))
    written, wanted = data.draw(cut), data.draw(cut)
    values = torch.arange(size, dtype=torch.float32)
    with TemporaryDirectory() as folder:
        paths = []
        for rank, (first, end) in enumerate(pairwise(written)):
            paths.append(Path(folder) / part_name(rank))
            write_part(paths[-1], [piece("w", size, first, values[first:end])], {}, {})
        with PartReader(paths) as reader:
            for first, end in pairwise(wanted):
                found = piece("w", size, first, torch.full((end - first,), -1.0))
                reader.load(found)
                assert torch.equal(found.tensors["weight"], values[first:end])
                assert torch.equal(found.tensors["exp_avg"], 2 * values[first:end])


def test_views_matrices_and_scalars(tmp_path: Path) -> None:
    """A piece of a longer tensor, a matrix, names with the separator's neighbours in them."""
    flat = torch.arange(10.0)
    write_part(
        tmp_path / "a",
        [piece("x.y|z", 4, 0, flat[3:7], step=torch.tensor(7.0)), piece("m", 6, 0, torch.arange(6.0).view(2, 3))],
        {},
        {},
    )
    target, matrix = torch.zeros(10), torch.zeros(2, 3)
    scalar = torch.tensor(0.0)
    with PartReader([tmp_path / "a"]) as reader:
        reader.check_parameters({"x.y|z", "m"})
        reader.load(piece("x.y|z", 4, 0, target[3:7], step=scalar))
        reader.load(piece("m", 6, 0, matrix))
    assert target.tolist() == [0, 0, 0, 3, 4, 5, 6, 0, 0, 0]
    assert matrix.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert scalar.item() == 7


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (piece("w", 5, 0, torch.zeros(5)), "4 elements here, but 5 in this run"),
        (piece("w", 3, 0, torch.zeros(3)), "4 elements here, but 3 in this run"),
        (piece("w", 4, 0, torch.zeros(4), step=torch.tensor(0.0)), "exp_avg, weight here, but exp_avg, step, weight"),
        (StatePiece("w", 4, Segment(0, 0, 4, 0), {"weight": torch.zeros(4)}, {}), "but weight in this run"),
        (piece("v", 4, 0, torch.zeros(4)), "v has nothing here"),
    ],
)
def test_another_model_or_optimizer_is_refused(tmp_path: Path, wanted: StatePiece, message: str) -> None:
    """A smaller tensor too: its values could be read, and would be the wrong ones."""
    write_part(tmp_path / "a", [piece("w", 4, 0, torch.ones(4))], {}, {})
    with PartReader([tmp_path / "a"]) as reader, pytest.raises(DataError, match=message) as raised:
        reader.load(wanted)
    assert "another model or optimizer" in str(raised.value)
    assert not any(bool(tensor.any()) for tensor in wanted.tensors.values()), "nothing was overwritten"


def test_parameters_must_be_the_same_set(tmp_path: Path) -> None:
    write_part(tmp_path / "a", [piece("w", 1, 0, torch.ones(1)), piece("v", 1, 0, torch.ones(1))], {}, {})
    with PartReader([tmp_path / "a"]) as reader:
        reader.check_parameters({"w", "v"})
        with pytest.raises(DataError, match="the checkpoint has no parameter x"):
            reader.check_parameters({"w", "v", "x"})
        with pytest.raises(DataError, match="the model has no parameter v"):
            reader.check_parameters({"w"})


def test_a_part_that_is_missing_is_not_read_as_zeros(tmp_path: Path) -> None:
    write_part(tmp_path / "a", [piece("w", 4, 0, torch.ones(2))], {}, {})
    with PartReader([tmp_path / "a"]) as reader, pytest.raises(DataError, match="2 elements here, but 4"):
        reader.load(piece("w", 4, 0, torch.zeros(4)))


def test_state_of_whole_parameters_comes_back_as_it_was(tmp_path: Path) -> None:
    """Tensors of any shape and type, and Python numbers of either kind, from whichever rank kept the parameter."""
    factors = {"row": torch.randn(3, 1), "half": torch.randn(2, 2).bfloat16(), "step": 7, "scale": 0.1, "one": 1.0}
    write_part(tmp_path / "a", [], {"x.y|z": factors}, {})
    write_part(tmp_path / "b", [], {"w": {"momentum": torch.arange(6.0).view(2, 3).T}}, {})
    with PartReader([tmp_path / "b", tmp_path / "a"]) as reader:
        found = reader.owned("x.y|z")
        assert found.keys() == factors.keys()
        for name, value in factors.items():
            assert type(found[name]) is type(value), name
            assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name
            assert torch.as_tensor(found[name]).dtype == torch.as_tensor(value).dtype, name
        momentum = reader.owned("w")["momentum"]
        assert isinstance(momentum, torch.Tensor)
        assert momentum.tolist() == [[0, 3], [1, 4], [2, 5]]
        assert reader.owned("v") == {}


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.rand(3)
    write_part(tmp_path / "a", [], {}, generator_states(torch.device("cpu")))
    expected = torch.rand(4)
    torch.manual_seed(6)
    restore_generators(read_rng(tmp_path / "a"), torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
