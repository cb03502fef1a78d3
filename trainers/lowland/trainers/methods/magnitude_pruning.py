"""Magnitude pruning: the smallest weights become 0 and stay so.

Iterative pruning with rewinding after Renda, Frankle, Carbin, *Comparing rewinding and fine-tuning in neural network
pruning* (2020): after each pruning the learning-rate schedule begins anew (learning-rate rewinding), and with weight
rewinding the weights that are left also go back to where they were early in the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lowland.trainers.engines import Engine, StatePiece
from lowland.trainers.errors import RecipeError
from lowland.trainers.kinds import parameter_kinds
from lowland.trainers.methods.base import GlobalBatch, Method, Problem
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.selection import smallest_until
from lowland.trainers.recipe.optimizers.mixed import Kind
from lowland.trainers.world import World

MASK, EARLY = "prune_mask", "prune_early"


@dataclass(frozen=True)
class Round:
    """A pruning event."""

    step: int
    """Steps done when it happens."""
    sparsity: float
    """Share of the prunable weights that are 0 after it."""


def iterative_rounds(sparsity: float, rounds: int, *, dense: int, total: int) -> tuple[Round, ...]:
    """Rounds that each leave the same share of the remaining weights, equally spaced from `dense` to `total`.

    The last trains as long as the others.  One round is one-shot pruning.
    """
    length = (total - dense) / rounds
    return tuple(
        Round(dense + round(index * length), 1 - (1 - sparsity) ** ((index + 1) / rounds)) for index in range(rounds)
    )


def gradual_rounds(sparsity: float, rounds: int, *, dense: int, end: int) -> tuple[Round, ...]:
    """Rounds between `dense` and `end` on the cubic curve of Zhu and Gupta (2017): s (1 - (1 - t)^3)."""
    done = [(index + 1) / rounds for index in range(rounds)]
    return tuple(Round(dense + round((end - dense) * t), sparsity * (1 - (1 - t) ** 3)) for t in done)


class MagnitudePruning(Method):
    """Prunes at the given rounds, and keeps pruned weights and their optimizer state at 0 after every step.

    Which weights are pruned does not depend on sharding (`smallest_until`); several of equal size are pruned together.
    Gradients of pruned weights still count in the norm that is clipped.  Memory: a byte per prunable weight; weight
    rewinding 4 more.  Under ZeRO each step gathers the weights once more.

    Args:
        rounds: at least one, in ascending order of steps.
        scope: whether sizes are compared over all prunable tensors or within each.
        kinds: which tensors are prunable.
        rewind: `none` leaves the schedule as it is; `learning_rate` begins it anew with each round, over the round's
            length; `weights` also puts the remaining weights back to those after `rewind_to` steps, clears the
            optimizer's state, and begins the schedule at that step.
        rewind_to: at least 1, and at most the first round's step.
    """

    name = "magnitude_pruning"

    def __init__(
        self,
        rounds: Sequence[Round],
        *,
        scope: Literal["global", "tensor"],
        kinds: Sequence[Kind],
        rewind: Literal["none", "learning_rate", "weights"],
        rewind_to: int = 1,
    ) -> None:
        self._rounds, self._scope, self._kinds = tuple(rounds), scope, frozenset(kinds)
        self._rewind, self._rewind_to = rewind, rewind_to
        self._chosen: frozenset[int] = frozenset()
        self._names: set[str] = set()
        self._masks: dict[tuple[str, int], Tensor] = {}
        self._early: dict[tuple[str, int], Tensor] = {}
        self._step = 0
        self._cost: Multiplications | None = None
        self._metrics: dict[str, float] = {}

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Chooses the tensors."""
        kinds = parameter_kinds(network)
        parameters = dict(network.named_parameters())
        self._chosen = frozenset(
            id(parameters[name])
            for name, kind in kinds.items()
            if kind in self._kinds and parameters[name].requires_grad
        )
        if not self._chosen:
            held = ", ".join(sorted(set(kinds.values())))
            raise RecipeError(
                f"methods: magnitude_pruning.kinds = {', '.join(sorted(self._kinds))}: the model has no trainable "
                f"tensor of these kinds; it has: {held}"
            )
        self._cost = Multiplications(network, problem.shape)

    def attach(self, engine: Engine, world: World) -> None:
        """Notes the tensors' names."""
        self._names = {name for name, p in engine.module.named_parameters() if id(p) in self._chosen}

    def begin_step(self, step: int) -> None:
        """Notes the step."""
        self._step = step

    def schedule(self, step: int, total: int) -> tuple[int, int]:
        """Where the schedule is read: within the part of the training that the step is in."""
        if self._rewind == "none":
            return step, total
        bounds = [0, *(one.step for one in self._rounds), total]
        index = max(i for i, bound in enumerate(bounds[:-1]) if step >= bound)
        skipped = self._rewind_to if self._rewind == "weights" and index > 0 else 0
        return step - bounds[index] + skipped, bounds[index + 1] - bounds[index] + skipped

    def piece_state(self, piece: StatePiece) -> dict[str, Tensor]:
        """The mask, and the early weights if they are to come back; made here if they are not there yet."""
        key, weight = (piece.name, piece.segment.offset), piece.tensors["weight"]
        found = {}
        if self._prunes(piece):
            found[MASK] = self._masks.setdefault(key, torch.ones_like(weight, dtype=torch.uint8))
        if self._rewind == "weights":
            found[EARLY] = self._early.setdefault(key, torch.zeros_like(weight))
        return found

    @torch.no_grad()
    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Prunes if it is due, and puts what is pruned back to 0."""
        done = self._step + 1
        pieces = list(engine.pieces())
        if self._rewind == "weights" and done == self._rewind_to:
            for piece in pieces:
                self.piece_state(piece)[EARLY].copy_(piece.tensors["weight"])
        for one in self._rounds:
            if one.step == done:
                self._prune(pieces, one.sparsity, engine, world)
        for piece in pieces:
            if self._prunes(piece):
                _keep(piece, self.piece_state(piece)[MASK])
        engine.masters_changed()

    def _prunes(self, piece: StatePiece) -> bool:
        return piece.name in self._names

    def _prune(self, pieces: Sequence[StatePiece], sparsity: float, engine: Engine, world: World) -> None:
        prunable = [piece for piece in pieces if self._prunes(piece)]
        magnitudes = [piece.tensors["weight"].abs() for piece in prunable]
        parameters = sorted(self._names)
        sets = [0 if self._scope == "global" else parameters.index(piece.name) for piece in prunable]

        def add(counts: Tensor) -> Tensor:
            return counts if engine.replicated else torch.tensor(world.sum(counts.tolist())).long()

        sizes = torch.zeros(len(parameters), dtype=torch.int64)
        for piece in prunable:
            sizes[parameters.index(piece.name)] += piece.tensors["weight"].numel()
        sizes = add(sizes)
        totals = [int(sizes.sum())] if self._scope == "global" else sizes.tolist()
        bounds = smallest_until(magnitudes, sets, [round(sparsity * total) for total in totals], add)
        zeros = torch.zeros_like(sizes)
        for piece, magnitude, index in zip(prunable, magnitudes, sets, strict=True):
            mask = self.piece_state(piece)[MASK]
            mask.copy_(magnitude > bounds[index].item())
            zeros[parameters.index(piece.name)] += mask.numel() - int(mask.sum())
        self._note(dict(zip(parameters, (add(zeros) / sizes).tolist(), strict=True)), sizes)
        if self._rewind == "weights":
            for piece in pieces:
                _put_back(piece, self.piece_state(piece)[EARLY])

    def _note(self, sparsity: dict[str, float], sizes: Tensor) -> None:
        shares = torch.tensor([sparsity[name] for name in sorted(sparsity)], dtype=torch.float64)
        self._metrics = {"sparsity": float((shares * sizes).sum() / sizes.sum())}
        if self._cost is not None:
            self._metrics |= self._cost.at(sparsity)

    def metrics(self) -> dict[str, float]:
        """Share of prunable weights that are 0; multiplications for an example, of the dense model and of this one."""
        return self._metrics


def _keep(piece: StatePiece, mask: Tensor) -> None:
    """Sets what is masked to 0, in the weights and in optimizer state of their size."""
    for tensor in piece.tensors.values():
        if tensor.is_floating_point():
            tensor.mul_(mask.view_as(tensor))


def _put_back(piece: StatePiece, early: Tensor) -> None:
    """Early weights, and an optimizer that knows nothing."""
    for name, tensor in piece.tensors.items():
        tensor.copy_(early) if name == "weight" else tensor.zero_()
    for number in piece.scalars.values():
        number.zero_()
