"""Who is examined, and what an examination says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from lowland.optim.methods import AROUND, METHODS, Around

__all__ = ["Finding", "Result", "Subject", "subjects"]

BASE = "sgd"
"""The method that what goes around others is tried around: Adam would divide a wrong length of the gradient out."""


@dataclass(frozen=True)
class Subject:
    """An optimizer that is examined: `make(params, **arguments)` builds it."""

    name: str
    make: Callable[..., Optimizer]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """`lr` suits a loss of order one."""
    matrices_only: bool = False
    """Whether it refuses tensors that are not matrices."""

    def build(self, params: Any, **changes: Any) -> Optimizer:
        """The optimizer of some parameters or groups, with some arguments changed."""
        return self.make(params, **{**self.arguments, **changes})


@dataclass(frozen=True)
class Finding:
    """What a check found wrong."""

    reason: str


@dataclass(frozen=True)
class Result:
    """The outcome of a check."""

    check: str
    passed: bool
    reason: str = ""
    """Why not."""


def subjects() -> dict[str, Subject]:
    """Every row of the tables of methods, by name; what goes around others is tried around SGD."""
    alone = {
        method.name: Subject(method.name, method.make, method.example, method.matrices_only)
        for method in METHODS.values()
    }
    return alone | {around.name: _around(around, alone[BASE]) for around in AROUND.values()}


def _around(around: Around, base: Subject) -> Subject:
    """`lr` is the base's; all other arguments go around it."""

    def make(params: Any, lr: float, **changes: Any) -> Optimizer:
        return around.make(base.build(params, lr=lr), **{**around.example, **changes})

    return Subject(around.name, make, {"lr": base.arguments["lr"]})
