"""The processes that train together."""

import os
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


@dataclass(frozen=True)
class World:
    """This process's place among the workers; torch.distributed is initialised if there are several."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None
    """A gloo group for small messages between hosts, so that they never wait for a GPU's queue."""

    @classmethod
    def current(cls, device: torch.device) -> "World":
        """The world of the initialised default process group, or a world of one."""
        if not dist.is_initialized():
            return cls(0, 1, 0, device, None)
        rank, size = dist.get_rank(), dist.get_world_size()
        control = dist.new_group(backend="gloo") if size > 1 else None
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", "0")), device, control)

    def sum(self, values: list[float]) -> list[float]:
        """Sums of float64 numbers over all ranks."""
        if self.control is None:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """Every rank's value (pickled on the way), in the order of the ranks, on every rank."""
        if self.control is None:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return cast("list[T]", values)

    def agree(self, flags: list[bool]) -> list[bool]:
        """Rank 0's flags, on every rank."""
        if self.control is None:
            return flags
        decided = torch.tensor(flags, dtype=torch.uint8)
        dist.broadcast(decided, src=0, group=self.control)
        return [bool(flag) for flag in decided]

    def all(self, holds: bool) -> bool:
        """Whether it holds on every rank."""
        return self.sum([float(not holds)])[0] == 0

    def first(self, error: E | None) -> E | None:
        """The error of the lowest rank that has one, on every rank."""
        return next((raised for raised in self.gather(error) if raised is not None), None)

    def close(self) -> None:
        """Frees the group; for processes in which one training follows another."""
        if self.control is not None and dist.is_initialized():
            dist.destroy_process_group(self.control)

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.control is not None:
            dist.barrier(group=self.control)
