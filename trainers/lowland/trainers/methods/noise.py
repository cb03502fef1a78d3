"""Normal numbers by their place: the same whichever rank asks for which of them."""

import math

import torch
from torch import Tensor

_MASKS = {shift: (1 << (64 - shift)) - 1 for shift in (27, 30, 31)}


def normal_at(seed: int, stream: int, places: Tensor) -> Tensor:
    """Standard normal numbers, a function of (seed, stream, place) alone.

    Args:
        seed, stream: any integers; a stream is for example a step and a tensor.
        places: int64, any shape.

    Returns:
        float32, shaped like `places`.
    """
    key = _mixed(torch.tensor(_signed(seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03)))
    first = _uniform(_mixed(places * 2 + key.item()))
    second = _uniform(_mixed(places * 2 + 1 + key.item()))
    # Box and Muller; 1 - u is above 0.
    return ((-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)).float()


def _mixed(values: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014); products wrap, as int64's do."""
    values = values + _signed(0x9E3779B97F4A7C15)
    values = (values ^ _shifted(values, 30)) * _signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _signed(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, by: int) -> Tensor:
    """A logical shift to the right: that of int64 repeats the sign."""
    return (values >> by) & _MASKS[by]


def _uniform(values: Tensor) -> Tensor:
    """float64 in [0, 1) from the upper 53 bits."""
    return ((values >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
