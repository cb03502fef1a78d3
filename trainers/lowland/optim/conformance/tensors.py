"""Checks of what comes with parameters: groups, frozen ones, missing gradients, memory order."""

import torch
from torch import nn

from lowland.optim.conformance.problems import Tensors, descend, parameters, quadratic
from lowland.optim.conformance.subject import Finding, Subject

ROUNDING = 1e-5
"""What summing in another order may make of an update, relative to it."""


def groups_are_only_a_grouping(subject: Subject) -> Finding | None:
    """The same hyper-parameters in several groups or in one are the same method."""
    start, one, several = (parameters(subject) for _ in range(3))
    descend(subject.build(list(one.values())), one, quadratic, 10)
    descend(subject.build([{"params": [value]} for value in several.values()]), several, quadratic, 10)
    apart = _distance(several, one, start)
    return Finding(f"one group or several: {apart:.1e} of the update apart") if apart > ROUNDING else None


def frozen_parameters_stay(subject: Subject) -> Finding | None:
    """A parameter that takes no gradient is neither moved nor decayed."""
    values = parameters(subject)
    frozen = next(iter(values))
    values[frozen].requires_grad_(False)
    before = values[frozen].clone()
    descend(subject.build(list(values.values())), values, quadratic, 3)
    return None if torch.equal(values[frozen], before) else Finding("a parameter with requires_grad=False moved")


def missing_gradients_are_left_out(subject: Subject) -> Finding | None:
    """A parameter without a gradient stays, alone or beside others, and moves when it gets one."""
    values = parameters(subject)
    optimizer = subject.build(list(values.values()))
    last = list(values)[-1]
    rest = {name: value for name, value in values.items() if name != last}
    before = values[last].detach().clone()
    optimizer.step(lambda: 0.0)
    descend(optimizer, rest, quadratic, 2)
    if not torch.equal(values[last], before):
        return Finding("a parameter without a gradient moved")
    descend(optimizer, values, quadratic, 2)
    if torch.equal(values[last], before):
        return Finding("a parameter did not move when its first gradient came late")
    return None


def memory_order_does_not_matter(subject: Subject) -> Finding | None:
    """A matrix that lies by columns in memory is stepped as one that lies by rows."""
    start, rows, columns = (parameters(subject) for _ in range(3))
    columns = {name: nn.Parameter(_by_columns(value.detach())) for name, value in columns.items()}
    for values in (rows, columns):
        descend(subject.build(list(values.values())), values, quadratic, 5)
    apart = _distance(columns, rows, start)
    return Finding(f"rows or columns first in memory: {apart:.1e} of the update apart") if apart > ROUNDING else None


def _by_columns(value: torch.Tensor) -> torch.Tensor:
    return value.mT.contiguous().mT if value.dim() > 1 else value


def _distance(values: Tensors, reference: Tensors, start: Tensors) -> float:
    """Of the worst tensor, relative to its update."""
    with torch.no_grad():
        return max(
            float((values[name] - moved).norm() / (moved - start[name]).norm()) for name, moved in reference.items()
        )
