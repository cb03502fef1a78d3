"""Trainings put together from parts of other libraries, where none has the whole method."""

from itertools import count
from typing import Any

import torch
from independent_trainings import EVERY, OUTER, SGD, Arguments, Closure, Training, fill, gradient, sgd
from torch import Tensor, nn

TURNED: Arguments = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}
"""eps is well above rounding: turned by its own singular vectors, a gradient is zero but on the diagonal."""
STRENGTH = 0.02
PERIOD, SNAPSHOTS = 10, 5


def rotated(model: nn.Module, module: Any) -> Training:
    """AdamW on A, with W = U A V^T and the singular vectors U, V of the first gradient; vectors are not turned."""
    params = list(model.parameters())
    bases: list[tuple[Tensor, Tensor]] = []
    turned = [torch.empty_like(_matrix(p)) for p in params]
    optimizer = module.AdamW(turned, **TURNED)

    def step(closure: Closure) -> None:
        closure()
        if not bases:
            bases.extend(_bases(gradient(p)) for p in params)
            for a, p, (u, v) in zip(turned, params, bases, strict=True):
                a.copy_(u.T @ _matrix(p) @ v)
        for a, p, (u, v) in zip(turned, params, bases, strict=True):
            a.grad = u.T @ _matrix(gradient(p)) @ v
        optimizer.step()
        fill(model, [u @ a @ v.T for a, (u, v) in zip(turned, bases, strict=True)])

    return Training(step)


def _matrix(tensor: Tensor) -> Tensor:
    """A vector is a column."""
    return tensor.detach().view(len(tensor), -1)


def _bases(first: Tensor) -> tuple[Tensor, Tensor]:
    if first.dim() == 1:
        return torch.eye(len(first)).to(first), torch.eye(1).to(first)
    u, _, vt = torch.linalg.svd(first)
    return u, vt.T


def isotonic(model: nn.Module, module: Any) -> Training:
    """SGD, and the proximal step by an isotonic regression."""
    optimizer = sgd(model)

    def prox(weight: Tensor) -> Tensor:
        ascending, order = weight.double().flatten().sort()
        d = len(ascending)
        inwards = STRENGTH * SGD["lr"] * (d + 1 - 2 * torch.arange(1, d + 1)) / (d - 1)
        met = torch.from_numpy(module.isotonic_regression((ascending + inwards).numpy()))
        return torch.empty_like(met).scatter_(0, order, met)

    def step(closure: Closure) -> None:
        closure()
        optimizer.step()
        fill(model, [prox(p.detach()) if p.dim() > 1 else p.detach() for p in model.parameters()])

    return Training(step)


def polyfit(model: nn.Module, module: Any) -> Training:
    """SGD, whose every PERIOD-th step is a jump along the line that fits the snapshots."""
    optimizer, numbers = sgd(model), count(1)
    snapshots: list[Any] = []

    def step(closure: Closure) -> None:
        closure()
        number = next(numbers)
        if number % (PERIOD // SNAPSHOTS) == 0:
            snapshots.append(torch.cat([p.detach().double().flatten() for p in model.parameters()]).numpy())
        if number % PERIOD:
            optimizer.step()
            return
        slope, start = module.polyfit(range(1, SNAPSHOTS + 1), module.stack(snapshots), 1)
        snapshots.clear()
        ahead = torch.from_numpy(start + slope * (SNAPSHOTS + 1))
        fill(model, list(ahead.split([p.numel() for p in model.parameters()])))

    return Training(step)


def outer(model: nn.Module, module: Any) -> Training:
    """SGD, and another one with Nesterov momentum whose gradient is what the inner steps moved."""
    inner, numbers = sgd(model), count(1)
    anchors = [p.detach().clone() for p in model.parameters()]
    optimizer = module.SGD(anchors, lr=OUTER, momentum=0.5, nesterov=True)

    def step(closure: Closure) -> None:
        closure()
        inner.step()
        if next(numbers) % EVERY:
            return
        for anchor, p in zip(anchors, model.parameters(), strict=True):
            anchor.grad = anchor - p.detach()
        optimizer.step()
        fill(model, anchors)

    return Training(step)
