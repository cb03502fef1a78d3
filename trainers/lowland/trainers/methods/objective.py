"""The objective of a step, exact for any function of the global batch, at any world size and cut.

A statistic such as the variance of risks is no sum over examples, so the sum of what ranks or micro-batches compute
by themselves is another objective.  But its gradient is linear in the gradients of the examples' numbers:

    d/dtheta F(x_1, ..., x_N) = sum_i (dF/dx_i) (dx_i/dtheta)

So the numbers x_i alone are gathered, detached; dF/dx_i follows by automatic differentiation on every rank; and each
rank differentiates the sum of its own examples' numbers, multiplied by these factors.  Gradients are then summed over
ranks as of any training.  With several micro-batches a pass without gradients gathers the numbers first.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.trainers.methods.base import Gather, GlobalBatch, Method, Outputs
from lowland.trainers.world import World


class Objective:
    """What is differentiated of each micro-batch.

    Args:
        methods: in the order in which they are applied.
        gather: brings together the rows of all ranks; None is a world of one.
    """

    def __init__(self, methods: Sequence[Method], gather: Gather | None = None) -> None:
        self._methods = tuple(methods)
        self._gather = gather or (lambda rows: (rows, 0))
        self.of_batch = any(method.of_batch for method in self._methods)
        self.batch: GlobalBatch | None = None
        """That of the first gradients of the step."""
        self._collected: list[Tensor] | None = None
        self._names: tuple[str, ...] = ()
        self._ahead: _Ahead | None = None
        self._own = _Own(torch.empty(0), torch.empty(0), {})

    def begin_step(self) -> None:
        """Forgets the last step."""
        self.batch = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Forward passes inside give their numbers; those for gradients must follow in the same order."""
        self._collected = []
        yield
        rows, self._collected = torch.cat(self._collected), None
        self._ahead = self._gathered(rows, self._names)

    def __call__(self, outputs: Outputs) -> Tensor:
        """A sum over the micro-batch whose gradient is the objective's; its value is the sum of plain losses.

        The objective is N times (mean of weighted losses and extra terms, plus penalties), for N examples in
        all micro-batches and ranks, so that a sum divided by N is left to the caller as without methods.
        Collective if any method is of the batch.
        """
        plain = outputs.losses.detach().sum()
        for method in self._methods:
            if (losses := method.losses(outputs)) is not None:
                outputs = replace(outputs, losses=losses)
        scalars = self._scalars(outputs) if self.of_batch else {}
        if self._collected is not None:
            self._names = tuple(scalars)
            self._collected.append(_rows(outputs, scalars))
            return plain
        terms = [outputs.losses * self._loss_factors(outputs, scalars)]
        terms += [values * self._own.scalars[name].to(values) for name, values in scalars.items()]
        terms += [extra for method in self._methods if (extra := method.extra(outputs)) is not None]
        total = torch.stack([term.sum() for term in terms]).sum()
        return total - total.detach() + plain

    def _scalars(self, outputs: Outputs) -> dict[str, Tensor]:
        return {name: values for method in self._methods for name, values in method.scalars(outputs).items()}

    def _loss_factors(self, outputs: Outputs, scalars: Mapping[str, Tensor]) -> Tensor:
        """float32 [B]: what each loss is multiplied by."""
        factors = torch.ones_like(outputs.losses)
        for method in self._methods:
            if (own := method.factor(outputs)) is not None:
                factors = factors * own.to(factors)
        if not self.of_batch:
            return factors
        ahead = self._ahead or self._gathered(_rows(outputs, scalars), tuple(scalars))
        self._own = ahead.next(len(factors))
        self._ahead = ahead if ahead.left else None
        return factors * self._own.weights.to(factors) + self._own.losses.to(factors)

    def _gathered(self, rows: Tensor, names: tuple[str, ...]) -> "_Ahead":
        gathered, first = self._gather(rows)
        losses, labels, correct, groups, *others = gathered.clone().unbind(1)
        leaves = [column.clone().requires_grad_() for column in (losses, *others)]
        batch = GlobalBatch(
            losses=leaves[0],
            labels=labels.long(),
            correct=correct,
            groups=None if bool((groups < 0).any()) else groups.long(),
            scalars=dict(zip(names, leaves[1:], strict=True)),
        )
        self.batch = self.batch or batch
        with torch.enable_grad():
            derivatives = _derivatives(self._penalty(batch), leaves)
        mine = slice(first, first + len(rows))
        weights, (of_losses, *of_scalars) = self._weights(batch)[mine], [column[mine] for column in derivatives]
        return _Ahead(_Own(weights, of_losses, dict(zip(names, of_scalars, strict=True))))

    def _weights(self, batch: GlobalBatch) -> Tensor:
        weights = torch.ones_like(batch.losses)
        with torch.no_grad():
            for method in self._methods:
                if method.of_batch and (own := method.weights(batch)) is not None:
                    weights = weights * own
        return weights.detach()

    def _penalty(self, batch: GlobalBatch) -> Tensor:
        """N times the sum of all penalties."""
        total = torch.zeros_like(batch.losses[0])
        for method in self._methods:
            if method.of_batch and (penalty := method.penalty(batch)) is not None:
                total = total + penalty
        return len(batch.losses) * total


def _rows(outputs: Outputs, scalars: Mapping[str, Tensor]) -> Tensor:
    """What is gathered of a micro-batch: float64 [B, 4 + scalars]."""
    correct = outputs.logits.argmax(dim=1) == outputs.labels
    groups = outputs.groups if outputs.groups is not None else torch.full_like(outputs.labels, -1)
    columns = (outputs.losses, outputs.labels, correct, groups, *scalars.values())
    return torch.stack([column.detach().double() for column in columns], dim=1)


def _derivatives(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]


@dataclass(frozen=True)
class _Own:
    """Factors of examples, float64 [B] each: of the losses, by weights and by penalties, and of the other numbers."""

    weights: Tensor
    losses: Tensor
    scalars: Mapping[str, Tensor]


@dataclass
class _Ahead:
    """The factors of this rank's examples, handed out micro-batch by micro-batch."""

    all: _Own
    used: int = 0

    @property
    def left(self) -> int:
        """Examples whose factors were not handed out yet."""
        return len(self.all.weights) - self.used

    def next(self, count: int) -> _Own:
        """Those of the next examples."""
        part = slice(self.used, self.used + count)
        self.used += count
        own = self.all
        taken = _Own(own.weights[part], own.losses[part], {name: x[part] for name, x in own.scalars.items()})
        assert len(taken.weights) == count, "more examples than were collected"
        return taken


class AllRanks:
    """`Gather` by one all-gather on the training's devices; every rank has equally many rows."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, rows: Tensor) -> tuple[Tensor, int]:
        """Every rank's rows, and where this rank's begin."""
        if self._world.size == 1:
            return rows, 0
        gathered = [torch.empty_like(rows) for _ in range(self._world.size)]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered), self._world.rank * len(rows)
