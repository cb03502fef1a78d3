"""Rounding to bfloat16 that is right on average, and the same wherever the pieces of a tensor lie."""

import torch
from torch import Tensor

__all__ = ["round_to_bfloat16"]

_MIX = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Multipliers of the splitmix64 generator, as signed 64-bit numbers."""


def round_to_bfloat16(values: Tensor, *, first: int, key: int) -> Tensor:
    """Rounds up with a probability that is the part of the step to the next number, else down.

    A moving average with decay rho changes by (1 - rho) of a difference; rounded to the nearest of bfloat16's 8 bits
    it would stand still.  The random number of an element is a function of its place in its parameter and
    of `key`, so that the cut into fragments does not change the result.

    Args:
        values: float32.
        first: place of the first element in its flattened parameter.
        key: another one gives other random numbers.
    """
    places = torch.arange(first, first + values.numel(), device=values.device)
    noise = _hash(_hash(torch.full((), key, device=values.device)) + places).view_as(values)
    bits = values.contiguous().view(torch.int32) + (noise & 0xFFFF).to(torch.int32)
    return (bits & -0x10000).view(torch.float32).to(torch.bfloat16)


def _hash(x: Tensor) -> Tensor:
    """splitmix64's finaliser; products wrap."""
    x = x * _MIX[0]
    x = (x ^ (x >> 30)) * _MIX[1]
    x = (x ^ (x >> 27)) * _MIX[2]
    return x ^ (x >> 31)
