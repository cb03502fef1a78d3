"""Checks that it descends, and that it listens to whoever drives it."""

import math

import torch
from torch import nn

from lowland.optim.conformance.problems import Loss, Tensors, descend, evaluated, parameters, quadratic, rosenbrock
from lowland.optim.conformance.subject import Finding, Subject


def converges_on_a_quadratic(subject: Subject) -> Finding | None:
    """500 steps bring an ill-conditioned quadratic to a twentieth of where it starts."""
    return _converges(subject, parameters(subject), quadratic, steps=500, part=0.05)


def converges_on_rosenbrock(subject: Subject) -> Finding | None:
    """500 steps lead into and along the curved valley: to a tenth of where it starts."""
    matrix = nn.Parameter(torch.tensor([[-1.2, 1.0], [1.5, 0.5], [0.3, -0.8]]))
    return _converges(subject, {"matrix": matrix}, rosenbrock, steps=500, part=0.1)


def the_rate_is_read_at_each_step(subject: Subject) -> Finding | None:
    """Schedules write `lr` into the groups: half of it must lead elsewhere."""
    ends = []
    for factor in (1.0, 0.5):
        values = parameters(subject)
        optimizer = subject.build(list(values.values()))
        for group in optimizer.param_groups:
            if "lr" not in group:
                return Finding("its groups have no `lr`, which schedules write")
            group["lr"] *= factor
        descend(optimizer, values, quadratic, 3)
        ends.append(values)
    if _same(*ends):
        return Finding("half of the groups' lr gives the same weights: it does not read lr at each step")
    return None


def the_closure_is_evaluated_and_returned(subject: Subject) -> Finding | None:
    """`step(closure)` computes gradients by the closure and returns its first loss."""
    values = parameters(subject)
    before = float(quadratic(values).detach())
    first = descend(subject.build(list(values.values())), values, quadratic, 1)[0]
    if first != before:
        return Finding(f"step(closure) returned {first}, and the closure's loss was {before}")
    return None


def _converges(
    subject: Subject, values: dict[str, nn.Parameter], loss: Loss, *, steps: int, part: float
) -> Finding | None:
    optimizer = subject.build(list(values.values()))
    start = descend(optimizer, values, loss, steps)[0]
    end = float(loss(evaluated(optimizer, values)))
    if not math.isfinite(end):
        return Finding(f"the loss is {end} after {steps} steps: is the learning rate too large?")
    if end > part * start:
        return Finding(f"{steps} steps took the loss from {start:.3g} to {end:.3g}, not below {part * start:.3g}")
    return None


def _same(first: Tensors, second: Tensors) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)
