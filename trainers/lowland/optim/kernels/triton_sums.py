"""Triton forms of sums: one pass over memory, the same bits each time.

A program sums its chunk in fp32 and writes one number per sum; a second kernel sums those of each tensor in fp64.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowland.optim.kernels.chunks import aligned, chunks_of
from lowland.optim.kernels.triton_lists import base_of, by_kind, load, on, place, start

__all__ = ["products", "squares"]

TOTALS_BLOCK = 1024


def squares(tensors: Sequence[Tensor]) -> Tensor:
    """`kernels.squares`."""
    return _sums([list(tensors)], _squares, 1)[:, 0]


def products(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """`kernels.products`."""
    return _sums([list(first), list(second)], _products, 3)


def _sums(lists: list[list[Tensor]], kernel: Any, columns: int) -> Tensor:
    device = lists[0][0].device
    sums = torch.empty(len(lists[0]), columns, dtype=torch.float64, device=device)
    for some, positions in by_kind(lists):
        chunks = chunks_of([x.numel() for x in some[0]], aligned(some), device)
        partials = torch.empty(columns, chunks.count, device=device)
        start(some, kernel, chunks.firsts, partials, chunks.count, chunks=chunks)
        totals = sums if positions is None else sums.new_empty(len(some[0]), columns)
        with on(device):
            _totals[(len(totals), columns)](chunks.firsts, partials, chunks.count, totals, columns, TOTALS_BLOCK)
        if positions is not None:
            sums.index_copy_(0, positions, totals)
    return sums


@triton.jit
def _squares(
    chunks,
    sizes,
    tensors,
    firsts,
    partials,
    count,
    KIND: tl.constexpr,
    FULL: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, begin, length = place(chunks, sizes, CHUNK)
    base = base_of(tensors, tensor, begin, KIND, FULL)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, CHUNK if FULL else length, BLOCK):
        a = load(base, first + tl.arange(0, BLOCK), length, FULL)
        total += a * a
    tl.store(partials + tl.load(firsts + tensor) + begin // CHUNK, tl.sum(total))


@triton.jit
def _products(
    chunks,
    sizes,
    left,
    right,
    firsts,
    partials,
    count,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    FULL: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, begin, length = place(chunks, sizes, CHUNK)
    left_base = base_of(left, tensor, begin, LEFT, FULL)
    right_base = base_of(right, tensor, begin, RIGHT, FULL)
    aa, ab, bb = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, CHUNK if FULL else length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        a, b = load(left_base, at, length, FULL), load(right_base, at, length, FULL)
        aa += a * a
        ab += a * b
        bb += b * b
    slot = partials + tl.load(firsts + tensor) + begin // CHUNK
    tl.store(slot, tl.sum(aa))
    tl.store(slot + count, tl.sum(ab))
    tl.store(slot + 2 * count, tl.sum(bb))


@triton.jit
def _totals(firsts, partials, count, totals, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    tensor, column = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(firsts + tensor), tl.load(firsts + tensor + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(partials + column * count + at, mask=at < end, other=0.0).to(tl.float64)
    tl.store(totals + tensor * COLUMNS + column, tl.sum(total))
