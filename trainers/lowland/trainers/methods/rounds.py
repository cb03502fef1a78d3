"""Pruning in rounds, whatever is pruned: when, with which learning rates, and going back to early weights.

Iterative pruning with rewinding after Renda, Frankle, Carbin, *Comparing rewinding and fine-tuning in neural network
pruning* (2020): after each pruning the learning-rate schedule begins anew (learning-rate rewinding), and with weight
rewinding the weights that are left also go back to where they were early in the training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowland.trainers.engines import Engine, StatePiece
from lowland.trainers.methods.base import GlobalBatch, Method
from lowland.trainers.world import World

Scope = Literal["global", "tensor"]
"""Over what sizes are compared."""
Rewind = Literal["none", "learning_rate", "weights"]
"""What begins anew with each round."""
EARLY = "prune_early"


@dataclass(frozen=True)
class Round:
    """A pruning event."""

    step: int
    """Steps done when it happens."""
    sparsity: float
    """Share of the prunable weights, or units, that are 0 after it."""


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


class InRounds(Method):
    """Prunes at the given rounds; what is pruned is for the class below to say.

    Memory: weight rewinding takes 4 bytes per trainable weight.  What is due at a skipped step happens after the next
    one that is not; of several rounds the last.

    Args:
        rounds: at least one, in ascending order of steps.
        rewind: `none` leaves the schedule as it is; `learning_rate` begins it anew with each round, over the round's
            length; `weights` also puts the remaining weights back to those after `rewind_to` steps, clears the
            optimizer's state, and begins the schedule at that step.
        rewind_to: at least 1, and at most the first round's step.
    """

    name = "magnitude_pruning"

    def __init__(self, rounds: Sequence[Round], *, rewind: Rewind, rewind_to: int) -> None:
        self._rounds, self._rewind, self._rewind_to = tuple(rounds), rewind, rewind_to
        self._step, self._done, self._taken = 0, 0, False
        self._early: dict[tuple[str, int], Tensor] = {}

    @property
    def begun(self) -> bool:
        """Whether a round is done."""
        return self._done > 0

    def prune(self, engine: Engine, pieces: Sequence[StatePiece], sparsity: float) -> None:
        """Chooses what is pruned from now on; `after_all` is called after it.  Collective.

        Args:
            engine: of the training.
            pieces: its pieces.
            sparsity: share of all that is prunable.
        """
        raise NotImplementedError

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
        """The early weights if they are to come back; made here if they are not there yet."""
        if self._rewind != "weights":
            return {}
        key = (piece.name, piece.segment.offset)
        return {EARLY: self._early.setdefault(key, torch.zeros_like(piece.tensors["weight"]))}

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
        due = [one for one in self._rounds[self._done :] if one.step <= done]
        if not due:
            return
        self.prune(engine, pieces, due[-1].sparsity)
        self._done += len(due)
        if self._rewind == "weights":
            for piece in pieces:
                _put_back(piece, self.piece_state(piece)[EARLY])

    def state(self) -> dict[str, Tensor]:
        """How many rounds are done, and whether early weights were taken."""
        return {"rounds": torch.tensor(self._done), "taken": torch.tensor(self._taken)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        self._done, self._taken = int(state["rounds"]), bool(state["taken"])


def _put_back(piece: StatePiece, early: Tensor) -> None:
    """Early weights, and an optimizer of single weights that knows nothing."""
    for name, tensor in piece.tensors.items():
        tensor.copy_(early) if name == "weight" else tensor.zero_()
    for number in piece.scalars.values():
        number.zero_()
