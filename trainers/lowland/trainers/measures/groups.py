"""Loss and accuracy of subgroups over a training: which group is learned first, and how far apart they are.

Means are (sum over ranks of sums) / (sum over ranks of counts), so they do not depend on how examples are spread.
`gap` is the largest group's value less the smallest's (bias evolution, arXiv 2405.18296).
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from lowland.trainers.world import World

__all__ = ["GroupTotals", "crossings"]


class GroupTotals:
    """Sums of losses, of right answers and of examples by group.

    Args:
        groups: how many there are; an example's group is in [0, groups).
    """

    def __init__(self, groups: int) -> None:
        self._sums = torch.zeros(3, groups, dtype=torch.float64)

    def add(self, losses: Tensor, right: Tensor, groups: Tensor) -> None:
        """Adds examples of this rank; padding must be left out.

        Args:
            losses: [n].
            right: bool [n].
            groups: int64 [n].

        Raises:
            ValueError: a group is out of range.
        """
        groups = groups.detach().cpu()
        if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < self._sums.shape[1]:
            raise ValueError(
                f"groups must be in [0, {self._sums.shape[1]}), got {int(groups.min())}..{int(groups.max())}"
            )
        values = torch.stack([losses.detach().cpu().double(), right.cpu().double(), torch.ones(len(groups)).double()])
        self._sums.index_add_(1, groups, values)

    def metrics(self, world: World) -> dict[str, float]:
        """`loss/<group>`, `accuracy/<group>`, their gaps and the worst group's accuracy; collective.

        Groups without an example are left out; nothing without any example.
        """
        total = torch.tensor(world.sum(self._sums.flatten().tolist()), dtype=torch.float64).view(3, -1)
        present = [group for group, count in enumerate(total[2].tolist()) if count]
        if not present:
            return {}
        losses, accuracies = (
            {group: float(total[row, group] / total[2, group]) for group in present} for row in (0, 1)
        )
        return {
            **{f"loss/{group}": value for group, value in losses.items()},
            **{f"accuracy/{group}": value for group, value in accuracies.items()},
            "loss_gap": max(losses.values()) - min(losses.values()),
            "accuracy_gap": max(accuracies.values()) - min(accuracies.values()),
            "worst_accuracy": min(accuracies.values()),
        }


def crossings(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """The steps, between recorded ones by a straight line, at which two groups' curves cross.

    Args:
        first: a metric of one group by step.
        second: of the other; only steps that both have are looked at.
    """
    steps = sorted(first.keys() & second.keys())
    gaps = [(step, first[step] - second[step]) for step in steps if first[step] != second[step]]
    return [
        step + (later - step) * gap / (gap - next_gap)
        for (step, gap), (later, next_gap) in pairwise(gaps)
        if gap * next_gap < 0
    ]
