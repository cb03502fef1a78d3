"""Sums over tensors: squared norms and dot products."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lowland.optim.kernels.choice import fused

_CHUNK = 1 << 12
"""Elements summed in fp32 before the sum goes on in fp64: a longer fp32 sum loses digits."""


@fused("triton_sums")
def squares(tensors: Sequence[Tensor]) -> Tensor:
    """The squared norm of each tensor: float64 [n]."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    return torch.stack([_dot(x, x) for x in tensors])


@fused("triton_sums")
def products(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """For each pair of equally shaped tensors a and b: <a, a>, <a, b> and <b, b>, float64 [n, 3]."""
    if not first:
        return torch.zeros(0, 3, dtype=torch.float64)
    rows = [torch.stack([_dot(a, a), _dot(a, b), _dot(b, b)]) for a, b in zip(first, second, strict=True)]
    return torch.stack(rows)


def scaled(tensors: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
    """Each tensor times its factor, in fp32; factors are float32 [n] on the same device."""
    exact = [tensor.float() for tensor in tensors]
    return list(torch._foreach_mul(exact, factors.tolist() if factors.device.type == "cpu" else factors.unbind()))


def constant(values: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers as a tensor; made once, since copying to a GPU makes it wait."""
    return _constant(tuple(values), device)


@lru_cache(maxsize=64)
def _constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.reshape(-1).float(), b.reshape(-1).float()
    if a.numel() <= _CHUNK:
        return torch.dot(a, b).double()
    # Many calls of dot, since torch's batched products take three to seven times as long.
    return torch.stack([torch.dot(x, y) for x, y in zip(a.split(_CHUNK), b.split(_CHUNK), strict=True)]).double().sum()
