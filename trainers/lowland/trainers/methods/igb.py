"""Improvable gap balancing: losses that have more left to improve count more.

Dai, Fei, Lu, *Improvable gap balancing for multi-task learning* (2023), the variant without a learnt agent.  At first
the sum of log losses is minimised, which no scale of a loss changes.  After the base epoch the mean losses b_i of
that epoch say how hard each is, and w_i = n softmax_i(l_i / b_i).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lowland.trainers.engines import Engine
from lowland.trainers.methods.base import GlobalBatch, Method, group_means
from lowland.trainers.world import World

LEAST = 1e-12
"""Losses below count as this, in quotients and logarithms: examples that are learnt by heart may have a loss of 0."""


def igb_weights(losses: Tensor, base: Tensor | None) -> Tensor:
    """w [n], without gradients; ones before there is a base.

    Args:
        losses: [n], at least 0.
        base: [n], mean losses of the base epoch.
    """
    if base is None:
        return torch.ones_like(losses)
    return len(losses) * torch.softmax((losses.clamp(min=LEAST) / base.clamp(min=LEAST)).detach(), dim=0)


def igb_objective(losses: Tensor, base: Tensor | None) -> Tensor:
    """The sum of w_i log l_i."""
    return (igb_weights(losses, base) * losses.clamp(min=LEAST).log()).sum()


class IGB(Method):
    """The mean losses of the groups as the several losses, whose sum of weighted logarithms is divided by their number.

    It takes the place of the mean loss.  A group without an example in the batch is left out of that step.

    Args:
        groups: their number.
        base_start: step from which the base losses are averaged.
        base_end: step from which they are used.
    """

    name = "igb"
    of_batch = True

    def __init__(self, groups: int, base_start: int, base_end: int) -> None:
        self._start, self._end, self._step = base_start, base_end, 0
        self._sums = torch.zeros(groups, dtype=torch.float64)
        self._counts = torch.zeros(groups, dtype=torch.float64)
        self._last = torch.ones(groups, dtype=torch.float64)

    def begin_step(self, step: int) -> None:
        """Notes the step."""
        self._step = step

    def weights(self, batch: GlobalBatch) -> Tensor:
        """N times the derivative of the objective with respect to each loss."""
        assert batch.groups is not None, "data without groups are refused before"
        present, index = torch.unique(batch.groups, return_inverse=True)
        losses = group_means(batch.losses.detach(), batch.groups)
        base = None
        if self._step >= self._end:
            # A group that the base epoch never met is measured by its own loss.
            base = (self._sums / self._counts).to(losses.device)[present]
            base = torch.where(base.isnan(), losses, base)
        weights = igb_weights(losses, base)
        self._last[present.cpu()] = weights.cpu()
        counts = torch.bincount(index)
        own = weights / (losses.clamp(min=LEAST) * counts * len(present))
        return len(batch.losses) * own[index]

    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Adds up the base losses while they are taken."""
        assert batch is not None
        assert batch.groups is not None
        if self._start <= self._step < self._end:
            present = torch.unique(batch.groups).cpu()
            self._sums[present] += group_means(batch.losses.detach(), batch.groups).cpu()
            self._counts[present] += 1

    def state(self) -> dict[str, Tensor]:
        """The base losses."""
        return {"sums": self._sums, "counts": self._counts}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        self._sums, self._counts = state["sums"], state["counts"]

    def metrics(self) -> dict[str, float]:
        """The latest weight of each group."""
        return {f"group_{group}/weight": value for group, value in enumerate(self._last.tolist())}
