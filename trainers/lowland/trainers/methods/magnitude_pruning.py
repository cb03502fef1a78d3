"""Magnitude pruning: the smallest weights become 0 and stay so.

Iterative pruning with rewinding after Renda, Frankle, Carbin, *Comparing rewinding and fine-tuning in neural network
pruning* (2020): after each pruning the learning-rate schedule begins anew (learning-rate rewinding), and with weight
rewinding the weights that are left also go back to where they were early in the training.
"""

from collections.abc import Mapping, Sequence
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
    rewinding 4 more.  Under ZeRO each step from the first round on gathers the weights once more.  What is due at a
    skipped step happens after the next one that is not; of several rounds the last.

    Optimizer state that is not of single weights (of whole tensors, and averages of the model) is left as it is: what
    pruned weights' gradients put there, as into Muon's momentum or Adafactor's rows and columns, has a say in the
    steps of the weights that are left.  Recipes refuse weight rewinding with such optimizers.

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
        self._next = 0
        self._taken = False
        self._cost: Multiplications | None = None
        self._engine: Engine | None = None
        self._world: World | None = None
        self._metrics: dict[str, float] | None = None

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
        """Notes the tensors' names, and over what is summed."""
        self._engine, self._world = engine, world
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
        """Prunes if it is due."""
        done = self._step + 1
        pieces = list(engine.pieces())
        # At or after their step, since at a step that was skipped this is not called.
        if self._rewind == "weights" and not self._taken and done >= self._rewind_to:
            for piece in pieces:
                self.piece_state(piece)[EARLY].copy_(piece.tensors["weight"])
            self._taken = True
        due = [one for one in self._rounds[self._next :] if one.step <= done]
        if due:
            self._prune(pieces, due[-1].sparsity)
            self._next += len(due)

    @torch.no_grad()
    def after_all(self, engine: Engine) -> None:
        """What is pruned back to 0."""
        if self._next == 0:
            return
        for piece in engine.pieces():
            if self._prunes(piece):
                _keep(piece, self.piece_state(piece)[MASK])
        engine.masters_changed()

    def _prunes(self, piece: StatePiece) -> bool:
        return piece.name in self._names

    def _prune(self, pieces: Sequence[StatePiece], sparsity: float) -> None:
        prunable = [piece for piece in pieces if self._prunes(piece)]
        masks = [self.piece_state(piece)[MASK] for piece in prunable]
        magnitudes = [piece.tensors["weight"].abs() for piece in prunable]
        parameters = sorted(self._names)
        sets = [0 if self._scope == "global" else parameters.index(piece.name) for piece in prunable]

        sizes, _ = self._counted()
        totals = [int(sizes.sum())] if self._scope == "global" else sizes.tolist()
        bounds = smallest_until(magnitudes, sets, [round(sparsity * total) for total in totals], self._add)
        for mask, magnitude, index in zip(masks, magnitudes, sets, strict=True):
            mask.copy_(magnitude > bounds[index].item())
        self._metrics = None
        if self._rewind == "weights":
            for piece in pieces:
                _put_back(piece, self.piece_state(piece)[EARLY])

    def _add(self, counts: Tensor) -> Tensor:
        assert self._engine is not None
        assert self._world is not None
        return counts if self._engine.replicated else torch.tensor(self._world.sum(counts.tolist())).long()

    def _counted(self) -> tuple[Tensor, Tensor]:
        """By prunable parameter in the order of names, over all ranks: its elements, and those that are pruned."""
        numbers = {name: index for index, name in enumerate(sorted(self._names))}
        counts = torch.zeros(2, len(numbers), dtype=torch.int64)
        for (name, _), mask in self._masks.items():
            counts[:, numbers[name]] += torch.tensor([mask.numel(), mask.numel() - int(mask.sum())])
        sizes, zeros = self._add(counts.flatten()).view(2, -1)
        return sizes, zeros

    def _of_masks(self) -> dict[str, float]:
        sizes, zeros = self._counted()
        found = {"sparsity": float(zeros.sum() / sizes.sum())}
        if self._cost is not None:
            found |= self._cost.at(dict(zip(sorted(self._names), (zeros / sizes).tolist(), strict=True)))
        return found

    def state(self) -> dict[str, Tensor]:
        """How many rounds are done, and whether early weights were taken."""
        return {"rounds": torch.tensor(self._next), "taken": torch.tensor(self._taken)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        self._next, self._taken, self._metrics = int(state["rounds"]), bool(state["taken"]), None

    def metrics(self) -> dict[str, float]:
        """Share of prunable weights that are 0; multiplications for an example, of the dense model and of this one.

        From the first round on; collective after a round or a resume.
        """
        if self._next == 0:
            return {}
        if self._metrics is None:
            self._metrics = self._of_masks()
        return self._metrics


def _keep(piece: StatePiece, mask: Tensor) -> None:
    """Sets what is masked to 0, in the weights and in optimizer state of single weights."""
    for tensor in piece.tensors.values():
        if tensor.is_floating_point():
            tensor.mul_(mask.view_as(tensor))


def _put_back(piece: StatePiece, early: Tensor) -> None:
    """Early weights, and an optimizer of single weights that knows nothing."""
    for name, tensor in piece.tensors.items():
        tensor.copy_(early) if name == "weight" else tensor.zero_()
    for number in piece.scalars.values():
        number.zero_()
