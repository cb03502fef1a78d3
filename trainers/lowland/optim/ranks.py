"""The processes that hold the pieces of the same tensors, and what they tell each other."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks"]


class Ranks:
    """A process group, and the device its messages travel from.

    Args:
        group: the processes; None is all of them.
        device: where tensors lie that are sent, which need not be where they are used: offloaded
            state lies in host memory while the group is NCCL's.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self._group, self.device = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def add(self, tensor: Tensor) -> None:
        """Sums a tensor over the ranks, in place."""
        sent = tensor.to(self.device)
        dist.all_reduce(sent, group=self._group)
        if sent is not tensor:
            tensor.copy_(sent)

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Gives each rank a part and gets one from each.

        Args:
            parts: 1-D float32, one for each rank.
            sizes: elements that each rank gives to this one.

        Returns:
            Those, on `device`.
        """
        sent = torch.cat([part.reshape(-1) for part in parts]).to(self.device)
        got = torch.empty(sum(sizes), dtype=sent.dtype, device=self.device)
        dist.all_to_all_single(got, sent, list(sizes), [part.numel() for part in parts], group=self._group)
        return list(got.split(list(sizes)))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, which pickle can carry."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values
