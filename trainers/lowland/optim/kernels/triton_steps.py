"""Triton forms of optimizer steps: one read and one write of everything that changes, in fp32 arithmetic.

Each function has the name and the arguments of the step whose meaning is written in torch (see `kernels.fused`).
"""

import triton
import triton.language as tl
from torch import Tensor

from lowland.optim.kernels.triton_lists import base_of, by_kind, load, place, start, store

__all__ = ["adatamw_", "lion_", "tam_"]


def tam_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    dampings: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """`lowland.optim.torque.tam_`."""
    for some, index in by_kind([params, grads, momenta]):
        start(some, _tam, _of(dampings, index), 1 - lr * weight_decay, momentum, lr)


def adatamw_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    seconds: list[Tensor],
    dampings: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """`lowland.optim.torque.adatamw_`."""
    for some, index in by_kind([params, grads, momenta, seconds]):
        start(some, _adatamw, _of(dampings, index), 1 - lr * weight_decay, betas[0], betas[1], 1 - betas[1], eps, lr)


def lion_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """`lowland.optim.lion.lion_`."""
    for some, _ in by_kind([params, grads, exp_avgs]):
        start(some, _lion, 1 - lr * weight_decay, betas[0], 1 - betas[0], betas[1], 1 - betas[1], lr)


def _of(values: Tensor, index: Tensor | None) -> Tensor:
    return values if index is None else values.index_select(0, index)


@triton.jit
def _tam(
    chunks,
    sizes,
    weights,
    grads,
    momenta,
    dampings,
    keep,
    beta,
    lr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MOMENTUM: tl.constexpr,
    FULL: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, begin, length = place(chunks, sizes, CHUNK)
    param = base_of(weights, tensor, begin, PARAM, FULL)
    grad = base_of(grads, tensor, begin, GRAD, FULL)
    momentum = base_of(momenta, tensor, begin, MOMENTUM, FULL)
    damping = tl.load(dampings + tensor)
    for first in range(0, CHUNK if FULL else length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        p, g, m = load(param, at, length, FULL), load(grad, at, length, FULL), load(momentum, at, length, FULL)
        m = beta * m + damping * g
        p = (keep * p).to(PARAM).to(tl.float32) - lr * m
        store(momentum, at, m, length, FULL)
        store(param, at, p, length, FULL)


@triton.jit
def _adatamw(
    chunks,
    sizes,
    weights,
    grads,
    momenta,
    seconds,
    dampings,
    keep,
    beta1,
    beta2,
    rest2,
    eps,
    lr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MOMENTUM: tl.constexpr,
    SECOND: tl.constexpr,
    FULL: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, begin, length = place(chunks, sizes, CHUNK)
    param = base_of(weights, tensor, begin, PARAM, FULL)
    grad = base_of(grads, tensor, begin, GRAD, FULL)
    momentum = base_of(momenta, tensor, begin, MOMENTUM, FULL)
    second = base_of(seconds, tensor, begin, SECOND, FULL)
    damping = tl.load(dampings + tensor)
    for first in range(0, CHUNK if FULL else length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        p, g = load(param, at, length, FULL), load(grad, at, length, FULL)
        m, v = load(momentum, at, length, FULL), load(second, at, length, FULL)
        m = beta1 * m + damping * g
        v = beta2 * v + rest2 * g * g
        p = (keep * p).to(PARAM).to(tl.float32) - lr * tl.div_rn(m, tl.sqrt_rn(v) + eps)
        store(momentum, at, m, length, FULL)
        store(second, at, v, length, FULL)
        store(param, at, p, length, FULL)


@triton.jit
def _lion(
    chunks,
    sizes,
    weights,
    grads,
    momenta,
    keep,
    beta1,
    rest1,
    beta2,
    rest2,
    lr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MOMENTUM: tl.constexpr,
    FULL: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, begin, length = place(chunks, sizes, CHUNK)
    param = base_of(weights, tensor, begin, PARAM, FULL)
    grad = base_of(grads, tensor, begin, GRAD, FULL)
    momentum = base_of(momenta, tensor, begin, MOMENTUM, FULL)
    for first in range(0, CHUNK if FULL else length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        p, g, m = load(param, at, length, FULL), load(grad, at, length, FULL), load(momentum, at, length, FULL)
        u = beta1 * m + rest1 * g
        sign = tl.where(u > 0, 1.0, tl.where(u < 0, -1.0, 0.0))
        p = (keep * p).to(PARAM).to(tl.float32) - lr * sign
        store(momentum, at, beta2 * m + rest2 * g, length, FULL)
        store(param, at, p, length, FULL)
