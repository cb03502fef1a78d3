"""Names of optimizers, which travel between processes where classes and closures do not."""

import importlib
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from lowland.optim.conformance import Subject, subjects
from lowland.optim.whole import Whole
from lowland.trainers.errors import UserError

__all__ = ["Target", "tried"]

ARGUMENTS: dict[str, dict[str, Any]] = {
    # Small buffers and quick decay: what they keep changes within a short training, and a wrong choice shows.
    "critical_momenta": {"variant": "sgd", "lr": 5e-2, "buffer_size": 2, "priority_decay": 0.9},
    "critical_gradients": {"variant": "sgd", "lr": 3e-2, "buffer_size": 2, "priority_decay": 0.9},
}
"""Instead of those that suit the conformance suite's losses."""


@dataclass(frozen=True)
class Target:
    """A row of the tables of methods, or anybody's class."""

    name: str
    """A row's, or `module:Class`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Besides a row's own."""
    whole: bool = False
    """Whether the class is run through `Whole`, which gives it whole tensors."""
    matrices_only: bool = False
    """Whether the class refuses tensors that are not matrices."""

    def subject(self) -> Subject:
        """The optimizer to be examined.

        Raises:
            UserError: there is none of that name.
        """
        rows = subjects()
        if self.name in rows:
            row = rows[self.name]
            return Subject(row.name, row.make, {**row.arguments, **self.arguments}, row.matrices_only)
        optimizer = self.optimizer_class()

        def make(params: Any, **arguments: Any) -> Optimizer:
            return Whole(params, lambda groups: optimizer(groups, **arguments))

        return Subject(self.name, make if self.whole else optimizer, self.arguments, self.matrices_only)

    def optimizer_class(self) -> type[Optimizer]:
        """The class of `module:Class`.

        Raises:
            UserError: there is none.
        """
        module, colon, name = self.name.partition(":")
        if not colon:
            raise UserError(f"{self.name} is no optimizer of lowland ({', '.join(subjects())}) and no module:Class")
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise UserError(
                f"{self.name}: cannot import {module}: {error}; install it, or start where it lies"
            ) from error
        if not isinstance(found, type) or not issubclass(found, Optimizer):
            raise UserError(f"{self.name}: {module} has no class {name} that is a torch.optim.Optimizer")
        return found


def tried(name: str) -> Target:
    """A row of the tables as the sharding table tries it."""
    return Target(name, ARGUMENTS.get(name, {}))
