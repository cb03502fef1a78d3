"""What all kernels share: how a program finds its chunk, and how a kernel is started on lists of tensors."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowland.optim.kernels.chunks import CHUNK, Chunks, addresses, aligned, chunks_of, sent

__all__ = ["base_of", "by_kind", "load", "on", "place", "start", "store"]

BLOCK = 1 << 11
"""Elements that a program holds in registers at a time."""
WARPS = 8
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def by_kind(lists: list[list[Tensor]]) -> Iterator[tuple[list[list[Tensor]], Tensor | None]]:
    """The lists cut into such that hold one type each, and the positions of these; None for all, as usual."""
    kinds = [tuple(x.dtype for x in column) for column in zip(*lists, strict=True)]
    if len(set(kinds)) == 1:
        yield lists, None
        return
    for kind in dict.fromkeys(kinds):
        positions = [position for position, found in enumerate(kinds) if found == kind]
        some = [[tensors[position] for position in positions] for tensors in lists]
        yield some, sent(torch.tensor(positions), lists[0][0].device)


def start(lists: list[list[Tensor]], kernel: Any, *arguments: Any, chunks: Chunks | None = None) -> None:
    """Starts a kernel on lists of tensors, each of one type, that it goes through side by side."""
    device = lists[0][0].device
    chunks = chunks or chunks_of([x.numel() for x in lists[0]], aligned(lists), device)
    tables = [addresses(tensors, device) for tensors in lists]
    types = [DTYPES[tensors[0].dtype] for tensors in lists]
    with on(device):
        for rows, full in ((chunks.full, True), (chunks.rest, False)):
            if len(rows):
                kernel[(len(rows),)](
                    rows, chunks.sizes, *tables, *arguments, *types, full, CHUNK, BLOCK, num_warps=WARPS
                )


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton starts kernels on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@triton.jit
def place(chunks, sizes, CHUNK: tl.constexpr):
    """This program's chunk: which tensor, its first element there, and how many."""
    row = tl.program_id(0)
    tensor = tl.load(chunks + 2 * row)
    begin = tl.load(chunks + 2 * row + 1).to(tl.int64) * CHUNK
    length = tl.minimum(tl.load(sizes + tensor) - begin, CHUNK).to(tl.int32)
    return tensor, begin, length


@triton.jit
def base_of(table, tensor, begin, DTYPE: tl.constexpr, FULL: tl.constexpr):
    """The address of a chunk."""
    base = tl.load(table + tensor).to(tl.pointer_type(DTYPE))
    if FULL:
        base = tl.multiple_of(base, 16)
    return base + begin


@triton.jit
def load(base, at, length, FULL: tl.constexpr):
    """Elements of a chunk in fp32; zero beyond its end."""
    if FULL:
        values = tl.load(base + at)
    else:
        values = tl.load(base + at, mask=at < length, other=0.0)
    return values.to(tl.float32)


@triton.jit
def store(base, at, values, length, FULL: tl.constexpr):
    """Writes elements of a chunk, rounded to its type."""
    if FULL:
        tl.store(base + at, values.to(base.dtype.element_ty))
    else:
        tl.store(base + at, values.to(base.dtype.element_ty), mask=at < length)
