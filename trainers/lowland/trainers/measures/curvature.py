"""The largest and the smallest eigenvalue of the loss's Hessian, by Lanczos on products with vectors.

Lanczos finds in k products the best approximation that the power iteration's k vectors allow, and both ends of the
spectrum at once.  Three vectors of the model's size are kept; without re-orthogonalisation an eigenvalue may appear
twice, which the extremes do not mind.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.trainers.world import World

__all__ = ["Extremes", "lanczos", "top_eigenvalue"]

Vector = Sequence[Tensor]
"""A vector in parameter space, in pieces; under sharding a rank has its own."""
Dot = Callable[[Vector, Vector], float]


class Extremes(NamedTuple):
    """Ends of a spectrum."""

    largest: float
    smallest: float


def lanczos(product: Callable[[Vector], Vector], start: Vector, dot: Dot, iterations: int) -> Extremes:
    """The ends of the spectrum of a symmetric operator.

    Args:
        product: the operator times a vector.
        start: where to begin; must not be orthogonal to what is sought, so best random.
        dot: the scalar product, over ranks if vectors are spread over them.
        iterations: products taken at most, at least 1; as many as dimensions are exact.

    Raises:
        ValueError: `start` is zero, or no iteration is allowed.
    """
    norm = dot(start, start) ** 0.5
    if norm == 0 or iterations < 1:
        raise ValueError(f"a start that is not zero and iterations >= 1 must hold, got |start| = {norm}, {iterations}")
    vector = [piece / norm for piece in start]
    before: Vector = [torch.zeros_like(piece) for piece in start]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        image = product(vector)
        diagonal.append(dot(image, vector))
        beta = beside[-1] if beside else 0.0
        rest = [i - diagonal[-1] * v - beta * b for i, v, b in zip(image, vector, before, strict=True)]
        length = dot(rest, rest) ** 0.5
        # What is left is rounding: the vectors so far span everything that `start` reaches.
        exhausted = length <= 1e-6 * max(map(abs, [*diagonal, *beside]))
        if len(diagonal) == iterations or exhausted:
            return _extremes(diagonal, beside)
        beside.append(length)
        before, vector = vector, [piece / length for piece in rest]


def _extremes(diagonal: list[float], beside: list[float]) -> Extremes:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values = torch.linalg.eigvalsh(matrix)
    return Extremes(float(values[-1]), float(values[0]))


def top_eigenvalue(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], *, iterations: int, world: World, seed: int = 0
) -> Extremes:
    """The ends of the spectrum of a loss's Hessian, by double backward passes; collective.

    Args:
        loss: this rank's share of the loss: its sum over the rank's examples, divided by the weight of all ranks'.
        parameters: whole ones, the same on every rank, that the loss is differentiated by twice.
        iterations: Hessian products at most; each costs about two backward passes.
        world: the ranks among whom the examples are split.
        seed: of the start vector.
    """
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]

    def product(vector: Vector) -> Vector:
        found = torch.autograd.grad(gradients, parameters, list(vector), retain_graph=True, allow_unused=True)
        whole = [torch.zeros_like(v) if f is None else f.detach() for f, v in zip(found, vector, strict=True)]
        if world.size > 1:
            for piece in whole:
                dist.all_reduce(piece)
        return whole

    def dot(first: Vector, second: Vector) -> float:
        return float(sum((a.double() * b.double()).sum() for a, b in zip(first, second, strict=True)))

    return lanczos(product, start, dot, iterations)
