"""Measures that several processes take together."""

from pathlib import Path
from typing import Any

import torch
from support.training import outcome

from lowland.trainers.measures import GroupTotals, sam_sharpness, top_eigenvalue
from lowland.trainers.world import World

SHORT = {"length": "4 steps", "evaluation": {"every": None}}


def measured(data: Path, folder: Path, changes: dict[str, Any]) -> dict[str, dict[int, float]]:
    """The measures of a short training, on rank 0."""
    values = outcome(data, folder, {**SHORT, **changes}).values
    return {name: by_step for name, by_step in values.items() if name.startswith("measure/")}


def of_a_regression() -> tuple[float, float, float, dict[str, float]]:
    """Curvature, sharpness and group means of nine examples, split unevenly over the ranks."""
    world = World.current(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 3, generator=generator), torch.randn(9, generator=generator)
    theta = torch.randn(3, generator=generator).requires_grad_()
    mine = slice(0, 9) if world.size == 1 else slice(world.rank * 7, 7 + world.rank * 2)

    def loss() -> torch.Tensor:
        return (x[mine] @ theta - y[mine]).pow(2).sum() / 9

    found = top_eigenvalue(loss, [theta], iterations=3, world=world)
    totals = GroupTotals(2)
    errors = (x[mine] @ theta - y[mine]).detach()
    totals.add(errors.abs(), errors.abs() < 1, torch.arange(9)[mine] % 2)
    return *found, sam_sharpness(loss, [theta], rho=0.1, world=world), totals.metrics(world)
