"""Normal numbers by their place: the same whichever rank asks for which of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASKS = {shift: (1 << (64 - shift)) - 1 for shift in (27, 30, 31)}
_CHUNK = 1 << 20
"""Elements that are drawn at once: what lies between two operations stays within a GPU's cache."""


def normal_at(seed: int, stream: int, places: Tensor) -> Tensor:
    """Standard normal numbers, a function of (seed, stream, place) alone.

    Args:
        seed, stream: any integers; a stream is for example a step and a tensor.
        places: int64, any shape.

    Returns:
        float32, shaped like `places`.
    """
    return _normal(places * 2 + _keys(seed, [stream])[0])


def normal_in_a_row(
    seed: int, streams: Sequence[int], starts: Sequence[int], sizes: Sequence[int], device: torch.device
) -> Tensor:
    """What `normal_at` gives for the places from `start` on of each stream, one after the other.

    Launches are few and as many for many streams as for one; the host waits for nothing.

    Returns:
        float32 [sum of sizes] on the device.
    """
    total = sum(sizes)
    values = torch.arange(0, 2 * total, 2, device=device)
    shifts, before = [], 0
    for key, start, size in zip(_keys(seed, streams), starts, sizes, strict=True):
        shifts.append(_signed(key + 2 * (start - before)))
        before += size
    torch._foreach_add_(values.split(list(sizes)), shifts)
    return torch.cat([_normal(part) for part in values.split(_CHUNK)])


def _keys(seed: int, streams: Sequence[int]) -> list[int]:
    """By stream, where its numbers begin."""
    keys = [_signed(seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) for stream in streams]
    return [int(key) for key in _mixed(torch.tensor(keys)).tolist()]


def _normal(values: Tensor) -> Tensor:
    """Normal numbers of pairs of successive integers, by the first of each: Box and Muller."""
    # 1 - u is above 0.
    first = _uniform(_mixed(values)).neg_().log1p_().mul_(-2).sqrt_()
    return first.mul_(_uniform(_mixed(values + 1)).mul_(2 * math.pi).cos_()).float()


def _mixed(values: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014); products wrap, as int64's do."""
    values = values + _signed(0x9E3779B97F4A7C15)
    values.bitwise_xor_(_shifted(values, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    values.bitwise_xor_(_shifted(values, 27)).mul_(_signed(0x94D049BB133111EB))
    return values.bitwise_xor_(_shifted(values, 31))


def _shifted(values: Tensor, by: int) -> Tensor:
    """A logical shift to the right: that of int64 repeats the sign."""
    return (values >> by).bitwise_and_(_MASKS[by])


def _uniform(values: Tensor) -> Tensor:
    """float64 in [0, 1) from the upper 53 bits."""
    return (values >> 11).bitwise_and_((1 << 53) - 1).double().mul_(2.0**-53)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
