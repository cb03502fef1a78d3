"""How kernels go through lists of tensors: a table of addresses and a table of chunks, both cached.

A program of a kernel takes one chunk: up to `CHUNK` elements of one tensor.  Chunks that are full and whose tensors
lie on 16-byte boundaries come apart from the others, since their reads need no mask and take 16 bytes at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["ALIGNMENT", "CHUNK", "Chunks", "addresses", "aligned", "chunks_of"]

CHUNK = 1 << 14
"""Elements: enough to hide the look-ups in the tables, few enough to spread a model over all of a GPU."""
ALIGNMENT = 16
"""Bytes of the widest read."""


@dataclass(frozen=True)
class Chunks:
    """The chunks of a list of tensors, which cover every element once."""

    sizes: Tensor
    """Elements of each tensor: int64 [n]."""
    firsts: Tensor
    """The first chunk of each tensor when all are counted through, and their number: int64 [n + 1]."""
    full: Tensor
    """Chunks of `CHUNK` aligned elements, as (tensor, number within the tensor): int32 [chunks, 2]."""
    rest: Tensor
    """The other chunks, likewise."""

    @property
    def count(self) -> int:
        """All chunks."""
        return len(self.full) + len(self.rest)


def chunks_of(sizes: Sequence[int], on_boundary: Sequence[bool], device: torch.device) -> Chunks:
    """The chunks of tensors of these sizes, on a device; `on_boundary` says which lie on 16-byte boundaries."""
    return _chunks(tuple(sizes), tuple(on_boundary), device)


@lru_cache(maxsize=64)
def _chunks(sizes: tuple[int, ...], on_boundary: tuple[bool, ...], device: torch.device) -> Chunks:
    elements = torch.tensor(sizes, dtype=torch.int64)
    counts = (elements + CHUNK - 1) // CHUNK
    firsts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    tensor = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    number = torch.arange(len(tensor)) - firsts[tensor]
    full = torch.tensor(on_boundary, dtype=torch.bool)[tensor] & ((number + 1) * CHUNK <= elements[tensor])
    rows = torch.stack([tensor, number], dim=1).int()
    return Chunks(*(sent(table, device) for table in (elements, firsts, rows[full], rows[~full])))


def addresses(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Where tensors lie: int64 [n] on the device; tensors that stay where they are cost no copy."""
    return _addresses(tuple(tensor.data_ptr() for tensor in tensors), device)


@lru_cache(maxsize=256)
def _addresses(values: tuple[int, ...], device: torch.device) -> Tensor:
    return sent(torch.tensor(values, dtype=torch.int64), device)


def aligned(lists: Sequence[Sequence[Tensor]]) -> list[bool]:
    """For each position whether all lists' tensors lie on a 16-byte boundary."""
    found = [0] * len(lists[0])
    for tensors in lists:
        found = [bits | tensor.data_ptr() for bits, tensor in zip(found, tensors, strict=True)]
    return [bits % ALIGNMENT == 0 for bits in found]


def sent(table: Tensor, device: torch.device) -> Tensor:
    """A small table on the device, without waiting for what the device is doing."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)
