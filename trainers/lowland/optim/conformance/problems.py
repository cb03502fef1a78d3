"""Small losses with known minima, and the loop that descends them."""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.optim.base import LayoutOptimizer
from lowland.optim.conformance.subject import Subject
from lowland.optim.layers import evaluation_weights

__all__ = ["Loss", "Tensors", "descend", "evaluated", "parameters", "quadratic", "rosenbrock"]

Tensors = Mapping[str, Tensor]
Loss = Callable[[Tensors], Tensor]

MATRICES = {"square": (3, 3), "wide": (2, 5), "tall": (4, 2)}
OTHERS = {"vector": (5,), "cube": (2, 3, 2), "single": (1,)}


def parameters(subject: Subject) -> dict[str, nn.Parameter]:
    """Parameters of several shapes, the same at each call; matrices alone where the subject wants these."""
    generator = torch.Generator().manual_seed(1)
    shapes = MATRICES if subject.matrices_only else {**MATRICES, **OTHERS}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def quadratic(values: Tensors) -> Tensor:
    """Each element pulled to a place of its own, with curvatures from 0.3 to 3; the minimum is 0."""
    total = torch.zeros(())
    for index, value in enumerate(values.values()):
        curvature, target = _bowl(index, value.numel())
        total = total + 0.5 * (curvature * (value.reshape(-1) - target) ** 2).sum()
    return total


@cache
def _bowl(seed: int, numel: int) -> tuple[Tensor, Tensor]:
    """Curvatures and minimum."""
    generator = torch.Generator().manual_seed(100 + seed)
    curvature = torch.logspace(-0.5, 0.5, numel)[torch.randperm(numel, generator=generator)]
    return curvature, torch.randn(numel, generator=generator)


def rosenbrock(values: Tensors) -> Tensor:
    """Rosenbrock's curved valley in each row (x, y) of one matrix, divided by 50; the minimum is 0 at (1, 1)."""
    x, y = values["matrix"].unbind(1)
    return ((1 - x) ** 2 + 100 * (y - x**2) ** 2).sum() / 50


def descend(optimizer: Optimizer, values: Tensors, loss: Loss, steps: int) -> list[float]:
    """Losses before each step; the step is given a closure, as methods of several passes need it."""

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(values)
        value.backward()
        return float(value.detach())

    return [float(optimizer.step(closure)) for _ in range(steps)]


def evaluated(optimizer: Optimizer, values: Tensors) -> dict[str, Tensor]:
    """The weights that the optimizer wants to be judged by."""
    find = evaluation_weights(optimizer)
    if find is None or not isinstance(optimizer, LayoutOptimizer):
        return {name: value.detach() for name, value in values.items()}
    fragments = {name: optimizer.layout.fragment(value) for name, value in values.items()}
    return {name: find(fragment) for name, fragment in fragments.items() if fragment is not None}
