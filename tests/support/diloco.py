"""DiLoCo in several groups, in processes of their own."""

import torch
import torch.distributed as dist
from torch import nn

from lowland.optim import DiLoCo


def two_groups(every: int, lr: float, momentum: float) -> list[float]:
    """Each rank a group, with gradients of its own."""
    p = nn.Parameter(torch.zeros(2))
    optimizer = DiLoCo(torch.optim.SGD([p], lr=1.0), every=every, lr=lr, momentum=momentum, groups=2)
    for number in range(4):
        p.grad = torch.tensor([-1.0, float(dist.get_rank()) * (number + 1)])
        optimizer.step()
    return p.tolist()


def several_groups() -> dict[str, list[float]]:
    """Results of trainings in two groups."""
    return {"one": two_groups(1, 1.0, 0.0), "two": two_groups(2, 0.5, 0.5)}
