"""Magnitude pruning: the smallest weights become 0 and stay so."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowland.trainers.engines import Engine, StatePiece
from lowland.trainers.errors import RecipeError
from lowland.trainers.kinds import parameter_kinds
from lowland.trainers.methods.base import Problem
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.rounds import InRounds, Rewind, Round, Scope
from lowland.trainers.methods.selection import smallest_until
from lowland.trainers.recipe.optimizers.mixed import Kind
from lowland.trainers.world import World

MASK = "prune_mask"


class MagnitudePruning(InRounds):
    """Prunes single weights, and keeps pruned ones and their optimizer state at 0 after every step.

    Which weights are pruned does not depend on sharding (`smallest_until`); several of equal size are pruned together.
    Gradients of pruned weights still count in the norm that is clipped.  Memory: a byte per prunable weight.  Under
    ZeRO each step from the first round on gathers the weights once more.

    Optimizer state that is not of single weights (of whole tensors, and averages of the model) is left as it is: what
    pruned weights' gradients put there, as into Muon's momentum or Adafactor's rows and columns, has a say in the
    steps of the weights that are left.  Recipes refuse weight rewinding with such optimizers.

    Args:
        rounds: see `InRounds`, as `rewind` and `rewind_to`.
        scope: whether sizes are compared over all prunable tensors or within each.
        kinds: which tensors are prunable.
    """

    def __init__(
        self, rounds: Sequence[Round], *, scope: Scope, kinds: Sequence[Kind], rewind: Rewind, rewind_to: int = 1
    ) -> None:
        super().__init__(rounds, rewind=rewind, rewind_to=rewind_to)
        self._scope, self._kinds = scope, frozenset(kinds)
        self._chosen: frozenset[int] = frozenset()
        self._names: set[str] = set()
        self._masks: dict[tuple[str, int], Tensor] = {}
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

    def piece_state(self, piece: StatePiece) -> dict[str, Tensor]:
        """The mask too; made here if it is not there yet."""
        found = super().piece_state(piece)
        if piece.name in self._names:
            key, weight = (piece.name, piece.segment.offset), piece.tensors["weight"]
            found[MASK] = self._masks.setdefault(key, torch.ones_like(weight, dtype=torch.uint8))
        return found

    def prune(self, engine: Engine, pieces: Sequence[StatePiece], sparsity: float) -> None:
        """Finds the masks."""
        prunable = [piece for piece in pieces if piece.name in self._names]
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

    @torch.no_grad()
    def after_all(self, engine: Engine) -> None:
        """What is pruned back to 0."""
        if not self.begun:
            return
        for piece in engine.pieces():
            if piece.name in self._names:
                _keep(piece, self.piece_state(piece)[MASK])
        engine.masters_changed()

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

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what there is beside masks."""
        super().load_state(state)
        self._metrics = None

    def metrics(self) -> dict[str, float]:
        """Share of prunable weights that are 0; multiplications for an example, of the dense model and of this one.

        From the first round on; collective after a round or a resume.
        """
        if not self.begun:
            return {}
        if self._metrics is None:
            self._metrics = self._of_masks()
        return self._metrics


def _keep(piece: StatePiece, mask: Tensor) -> None:
    """Sets what is masked to 0, in the weights and in optimizer state of single weights."""
    for tensor in piece.tensors.values():
        if tensor.is_floating_point():
            tensor.mul_(mask.view_as(tensor))
