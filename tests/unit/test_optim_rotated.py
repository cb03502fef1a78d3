"""Adam in rotated coordinates against values worked out by hand, and where it must be Adam."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowland.optim import RotatedAdam
from lowland.optim.rotated import RandomRotation, haar


def gradients(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def trajectory(optimizer: torch.optim.Optimizer, p: nn.Parameter, rounds: list[Tensor]) -> list[Tensor]:
    points = []
    for gradient in rounds:
        p.grad = gradient.clone()
        optimizer.step()
        points.append(p.detach().clone())
    return points


def turned_by(optimizer: RotatedAdam, length: int, matrix: Tensor) -> None:
    """Puts a given matrix where the random one of vectors of this length would be."""
    rotation = RandomRotation(length, length, 0, torch.device("cpu"))
    rotation._block = matrix.T
    optimizer._rotations[length, torch.device("cpu")] = rotation


def test_turned_by_45_degrees_as_worked_out_by_hand() -> None:
    p, c = nn.Parameter(torch.zeros(1, 2)), math.sqrt(0.5)
    optimizer = RotatedAdam([p], lr=0.1, betas=(0.9, 0.999), basis="output")
    turned_by(optimizer, 2, torch.tensor([[c, c], [-c, c]]))
    first, second = trajectory(optimizer, p, [torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]])])
    assert first[0].tolist() == pytest.approx([-0.1414213542, 0.0], abs=1e-6)
    assert second[0].tolist() == pytest.approx([-0.2084104168, -0.0744322917], abs=1e-6)


@pytest.mark.parametrize("basis", ["standard", "output", "input", "layer"])
@pytest.mark.parametrize("kind", ["identity", "permutation", "sign flips"])
def test_what_only_relabels_coordinates_is_adam(basis: str, kind: str) -> None:
    shape = (4, 3)
    length = {"standard": 3, "output": 3, "input": 4, "layer": 12}[basis]
    matrix = torch.eye(length)
    if kind == "permutation":
        matrix = matrix[torch.randperm(length, generator=torch.Generator().manual_seed(1))]
    elif kind == "sign flips":
        matrix = torch.diag(torch.tensor([(-1.0) ** i for i in range(length)]))
    p, q = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(shape))
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    optimizer = RotatedAdam([p], basis=basis, **options)  # type: ignore[arg-type]
    turned_by(optimizer, length, matrix)
    rounds = gradients(6, *shape)
    for found, expected in zip(
        trajectory(optimizer, p, rounds), trajectory(torch.optim.AdamW([q], **options), q, rounds), strict=True
    ):
        assert torch.allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("basis", "block"), [("output", 768), ("output", 2), ("input", 768), ("input", 3), ("layer", 5), ("layer", 768)]
)
def test_it_is_adam_on_rotated_weights(basis: str, block: int) -> None:
    """theta' = R theta, g' = R g: Adam there is rotated Adam here; and a random rotation is not Adam."""
    shape = (5, 4)
    p = nn.Parameter(torch.ones(shape))
    optimizer = RotatedAdam([p], lr=1e-2, basis=basis, block=block, seed=7)  # type: ignore[arg-type]
    length = {"output": 4, "input": 5, "layer": 20}[basis]
    rotation = RandomRotation(length, block, 7, torch.device("cpu"))

    def rows(x: Tensor) -> Tensor:
        return {"output": x, "input": x.T, "layer": x.reshape(1, -1)}[basis]

    q = nn.Parameter(rotation.turn(rows(torch.ones(shape))))
    reference = torch.optim.AdamW([q], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    rounds = gradients(6, *shape)
    points = trajectory(optimizer, p, rounds)
    there = trajectory(reference, q, [rotation.turn(rows(g)) for g in rounds])
    for here, turned in zip(points, there, strict=True):
        assert torch.allclose(rotation.turn(rows(here)), turned, atol=1e-5)
    plain = nn.Parameter(torch.ones(shape))
    adam = trajectory(torch.optim.AdamW([plain], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0), plain, rounds)
    assert (points[-1] - adam[-1]).norm() > 0.1 * (adam[-1] - 1).norm()


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 100))
def test_random_rotations_are_orthogonal_and_a_function_of_size_and_seed(length: int, block: int, seed: int) -> None:
    rotation, again = (RandomRotation(length, block, seed, torch.device("cpu")) for _ in range(2))
    matrix = rotation.turn(torch.eye(length)).T
    assert torch.allclose(matrix @ matrix.T, torch.eye(length), atol=1e-5)
    assert torch.equal(matrix, again.turn(torch.eye(length)).T)
    assert torch.allclose(rotation.back(rotation.turn(torch.eye(length))), torch.eye(length), atol=1e-5)
    if length > block:
        assert int((matrix.abs() > 1e-7).sum()) <= length // block * block**2 + (length % block) ** 2


def test_a_haar_matrix_has_no_preferred_sign() -> None:
    """Without the sign fix the diagonal would be of one sign."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.stack([haar(3, generator).diagonal().sign() for _ in range(200)])
    assert signs.mean(0).abs().max() < 0.3


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 5), (3, 2, 2)])
def test_without_moments_the_singular_basis_gives_an_orthogonal_update(shape: tuple[int, ...]) -> None:
    """-lr U V^T, with eps well above the rounding of the off-diagonals."""
    (gradient,) = gradients(1, *shape, seed=2)
    p = nn.Parameter(torch.zeros(shape))
    optimizer = RotatedAdam([p], lr=0.1, betas=(0.0, 0.0), eps=1e-4, basis="svd", refresh=1)
    trajectory(optimizer, p, [gradient])
    u, _, vh = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    assert torch.allclose(p.detach().flatten(1), -0.1 * u @ vh, atol=1e-3)


def test_the_singular_basis_is_refreshed_when_due_and_moments_stay() -> None:
    p = nn.Parameter(torch.zeros(3, 2))
    optimizer = RotatedAdam([p], lr=0.1, basis="svd", refresh=2)
    rounds = gradients(4, 3, 2)
    bases = []
    for gradient in rounds:
        trajectory(optimizer, p, [gradient])
        bases.append(optimizer.state[p]["U"].clone())
    assert torch.equal(bases[0], bases[1])
    assert torch.equal(bases[2], bases[3])
    assert not torch.allclose(bases[1], bases[2])
    assert all(basis.shape == (3, 3) for basis in bases)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
@given(seed=st.integers(0, 1000))
def test_singular_vectors_have_the_sign_that_their_largest_element_says(shape: tuple[int, int], seed: int) -> None:
    """Else rounding would choose it, and another number of ranks end elsewhere."""
    p = nn.Parameter(torch.zeros(shape))
    optimizer = RotatedAdam([p], eps=1e-4, basis="svd", refresh=1)
    (gradient,) = gradients(1, *shape, seed=seed)
    trajectory(optimizer, p, [gradient])
    left, right = optimizer.state[p]["U"], optimizer.state[p]["V"]
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    beyond = right[:, shape[0] :]
    assert (beyond.gather(0, beyond.abs().argmax(0, keepdim=True)) > 0).all()
    values = torch.linalg.svdvals(gradient)
    count = len(values)
    assert torch.allclose(left[:, :count] * values @ right[:, :count].T, gradient, atol=1e-5)
    assert torch.allclose(right.T @ right, torch.eye(shape[1]), atol=1e-5)


@pytest.mark.parametrize(("shape", "kept"), [((9, 3), {"V"}), ((3, 9), {"U"}), ((3, 3), {"U", "V"}), ((9, 9), set())])
def test_a_side_that_is_too_long_is_not_turned(shape: tuple[int, int], kept: set[str]) -> None:
    p = nn.Parameter(torch.zeros(shape))
    optimizer = RotatedAdam([p], basis="svd", max_dim=4)
    trajectory(optimizer, p, gradients(2, *shape))
    assert {"U", "V"} & optimizer.state[p].keys() == kept
    assert all(len(optimizer.state[p][name]) == 3 for name in kept)
    assert p.norm() > 0


@pytest.mark.parametrize("basis", ["output", "input", "svd"])
def test_tensors_of_one_dimension_are_not_turned(basis: str) -> None:
    p, q = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))
    rounds = gradients(4, 6)
    found = trajectory(RotatedAdam([p], lr=1e-2, basis=basis), p, rounds)  # type: ignore[arg-type]
    reference = torch.optim.AdamW([q], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    assert torch.allclose(found[-1], trajectory(reference, q, rounds)[-1], atol=1e-7)


def test_a_group_may_have_its_own_basis() -> None:
    embedding, matrix = nn.Parameter(torch.zeros(6, 3)), nn.Parameter(torch.zeros(6, 3))
    optimizer = RotatedAdam([{"params": [embedding], "basis": "input"}, {"params": [matrix]}], basis="output")
    embedding.grad, matrix.grad = gradients(2, 6, 3)
    optimizer.step()
    assert optimizer.state[embedding]["exp_avg"].shape == (3, 6)
    assert optimizer.state[matrix]["exp_avg"].shape == (6, 3)


def test_measures_worked_out_by_hand() -> None:
    """In the singular basis without moments the update is orthogonal; the gradient there has min(m, n) elements."""
    gradient = torch.diag(torch.tensor([3.0, 1.0]))
    gradient = haar(2, torch.Generator().manual_seed(3)) @ gradient
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = RotatedAdam([p], betas=(0.0, 0.0), eps=1e-4, basis="svd", diagnose=1)
    trajectory(optimizer, p, [gradient])
    found = optimizer.measured()
    assert found["update_singular_variation"] == [pytest.approx(0.0, abs=1e-3)]
    norm = 2 * math.sqrt(10)
    assert found["gradient_density_rotated"] == [pytest.approx(4 / norm, rel=1e-4)]
    assert found["gradient_density_standard"] == [pytest.approx(float(gradient.abs().sum()) / norm, rel=1e-5)]


def test_nothing_is_measured_unless_asked_and_when_due() -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    silent = RotatedAdam([p])
    trajectory(silent, p, gradients(2, 2, 2))
    assert not any(silent.measured().values())
    q = nn.Parameter(torch.zeros(2, 2))
    asked = RotatedAdam([q], diagnose=2)
    trajectory(asked, q, gradients(1, 2, 2))
    assert not any(asked.measured().values())
    trajectory(asked, q, gradients(1, 2, 2, seed=1))
    (second,) = asked.measured()["gradient_density_standard"]
    trajectory(asked, q, gradients(1, 2, 2, seed=2))
    assert asked.measured()["gradient_density_standard"] == [second]


@pytest.mark.parametrize("basis", ["layer", "svd"])
def test_state_dict_round_trip_goes_on_bitwise(basis: str) -> None:
    rounds = gradients(6, 4, 3)
    whole, before = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    make = {"basis": basis, "block": 5, "refresh": 4, "seed": 3}
    trajectory(RotatedAdam([whole], **make), whole, rounds)  # type: ignore[arg-type]
    first = RotatedAdam([before], **make)  # type: ignore[arg-type]
    trajectory(first, before, rounds[:3])
    after = nn.Parameter(before.detach().clone())
    second = RotatedAdam([after], **make)  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    trajectory(second, after, rounds[3:])
    assert torch.equal(after, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr >= 0 must hold"),
        ({"betas": (1.0, 0.9)}, r"betas in \[0, 1\) must hold"),
        ({"eps": 0.0}, "eps > 0 must hold"),
        ({"weight_decay": -1.0}, "weight_decay >= 0 must hold"),
        ({"block": 0}, "block >= 1 must hold"),
        ({"refresh": 0}, "refresh >= 1 must hold"),
        ({"diagnose": 0}, "diagnose >= 1 must hold"),
        ({"basis": "rows"}, "basis must be one of standard, output, input, layer, svd, got 'rows'"),
    ],
)
def test_arguments_outside_their_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotatedAdam([nn.Parameter(torch.ones(2))], **arguments)
