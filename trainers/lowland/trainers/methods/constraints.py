"""Training under constraints on what is measured of the batch.

Each constraint has a *measure*, which decides whether it is violated and may be anything (an error rate), and a
differentiable *surrogate*, through which it acts on the weights (Cotter et al., *Two-player games for efficient
non-convex constrained optimization*, 2019).  The objective is f + sum_k mu_k surrogate_k; the multipliers mu follow
the violations of the measures, once a step, from the same forward pass.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowland.trainers.engines import Engine
from lowland.trainers.methods.base import GlobalBatch, Method, Outputs
from lowland.trainers.methods.multipliers import Multipliers
from lowland.trainers.world import World

Measure = Callable[[GlobalBatch], Tensor | None]
"""A number of the batch; None if the batch has no example that it is about."""


@dataclass(frozen=True)
class Constraint:
    """measure <= bound, >= bound or = bound."""

    label: str
    """For metrics."""
    measure: Measure
    surrogate: Measure
    """Differentiable, growing with the measure."""
    sense: Literal["at_most", "at_least", "equals"]
    bound: float

    def violation(self, batch: GlobalBatch) -> Tensor | None:
        """What is above 0 where the constraint is violated; of an equality also below."""
        value = self.measure(batch)
        return None if value is None else self._signed(value.detach().double() - self.bound)

    def term(self, batch: GlobalBatch) -> Tensor | None:
        """What the multiplier multiplies; the bound has no gradient and is left out."""
        value = self.surrogate(batch)
        return None if value is None else self._signed(value)

    def _signed(self, value: Tensor) -> Tensor:
        return -value if self.sense == "at_least" else value


@dataclass(frozen=True)
class Part:
    """Examples that a measure is about: all, those of a group, of a class, or of both."""

    group: int | None = None
    label: int | None = None

    def mean(self, values: Tensor, batch: GlobalBatch) -> Tensor | None:
        """The mean of `values` [N] over them; None if the batch has none."""
        here = torch.ones_like(batch.labels, dtype=torch.bool)
        if self.group is not None:
            assert batch.groups is not None, "data without groups are refused before"
            here &= batch.groups == self.group
        if self.label is not None:
            here &= batch.labels == self.label
        return (values * here).sum() / here.sum() if bool(here.any()) else None


def batch_constraint(
    label: str,
    metric: Literal["loss", "error", "chance"],
    sense: Literal["at_most", "at_least", "equals"],
    bound: float,
    *,
    part: Part,
    of_class: int = 0,
    less_all: bool = False,
) -> Constraint:
    """A constraint on a mean over examples of the batch.

    Args:
        label: for metrics.
        metric: `loss`, in nats; `error`, the share of wrong predictions, whose surrogate is the loss; `chance`, the
            probability that the model gives to `of_class`.
        sense: which side of the bound is right.
        bound: in the metric's unit.
        part: the examples.
        of_class: of `chance`.
        less_all: the difference between that mean and the one over the whole batch.
    """

    def mean(values: Tensor, batch: GlobalBatch) -> Tensor | None:
        own = part.mean(values, batch)
        return own if own is None or not less_all else own - values.mean()

    def surrogate(batch: GlobalBatch) -> Tensor | None:
        return mean(batch.scalars[f"chance/{of_class}"] if metric == "chance" else batch.losses, batch)

    def error(batch: GlobalBatch) -> Tensor | None:
        return mean(1 - batch.correct, batch)

    return Constraint(label, error if metric == "error" else surrogate, surrogate, sense, bound)


class Constraints(Method):
    """Constraints and their multipliers.

    The multipliers of a step's gradients are those before it; they move only with steps that were applied, and a
    constraint without examples in the batch neither acts nor moves.

    Args:
        constraints: at least one.
        multipliers: as many.
        start: step from which they act.
        chances: classes whose probability is a number that constraints may use, as `chance/<class>`.
    """

    name = "constraints"
    of_batch = True

    def __init__(
        self,
        constraints: Sequence[Constraint],
        multipliers: Multipliers,
        *,
        start: int = 0,
        chances: Iterable[int] = (),
    ) -> None:
        self._constraints, self._multipliers, self._start = tuple(constraints), multipliers, start
        self._chances = sorted(set(chances))
        self._acts = start == 0
        self._violations: dict[str, float] = {}

    def begin_step(self, step: int) -> None:
        """Decides whether constraints act."""
        self._acts = step >= self._start

    def scalars(self, outputs: Outputs) -> dict[str, Tensor]:
        """The probabilities of the classes that constraints are about."""
        if not self._chances:
            return {}
        chances = outputs.logits.float().softmax(dim=1)
        return {f"chance/{label}": chances[:, label] for label in self._chances}

    def penalty(self, batch: GlobalBatch) -> Tensor | None:
        """mu' surrogates."""
        if not self._acts:
            return None
        pairs = zip(self._multipliers.values.tolist(), self._constraints, strict=True)
        terms = [mu * term for mu, constraint in pairs if (term := constraint.term(batch)) is not None]
        return torch.stack(terms).sum() if terms else None

    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Moves the multipliers."""
        assert batch is not None
        found = [constraint.violation(batch) for constraint in self._constraints]
        pairs = zip(self._constraints, found, strict=True)
        self._violations |= {c.label: float(value) for c, value in pairs if value is not None}
        if self._acts:
            seen = torch.tensor([value is not None for value in found])
            values = torch.tensor([0.0 if value is None else float(value) for value in found], dtype=torch.float64)
            self._multipliers.step(values, seen)

    def state(self) -> dict[str, Tensor]:
        """The multipliers."""
        return self._multipliers.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        self._multipliers.load(dict(state))

    def metrics(self) -> dict[str, float]:
        """Violation (above 0: violated) and multiplier of each constraint."""
        values = zip(self._constraints, self._multipliers.values.tolist(), strict=True)
        multipliers = {f"{constraint.label}/multiplier": value for constraint, value in values}
        return multipliers | {f"{label}/violation": value for label, value in self._violations.items()}
