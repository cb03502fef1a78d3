"""Magnitude pruning of whole units: those with the smallest filters become 0, stay so, and are not exported.

Li, Kadav, Durdanovic, Samet, Graf, *Pruning filters for efficient ConvNets* (2017): units are ranked by the L1 norm of
the weights that make them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowland.trainers.engines import Engine, StatePiece
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import Problem
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.removal import Removal
from lowland.trainers.methods.rounds import InRounds, Rewind, Round, Scope
from lowland.trainers.models.units import Units, removable_units
from lowland.trainers.world import World


def largest_units(norms: Tensor, counts: Sequence[int], left: Tensor, share: float, scope: Scope) -> Tensor:
    """The units that stay when a share of all is to be gone; of equal ones those in front.

    The largest of each layer always stays, so that fewer may go than are wanted.

    Args:
        norms: float64 [units], not negative, layer by layer.
        counts: of each layer its units, those that are gone too.
        left: bool [units]: those that are not gone already, at least one of each layer; the others go first.
        share: in [0, 1).
        scope: `tensor` takes the share of each layer, by its norms; `global` of all layers, by each norm over the mean
            of its layer's that are left, since the norms themselves go with a layer's inputs and scale.

    Returns:
        bool [units].
    """
    sizes = torch.cat([_relative(part) for part in torch.where(left, norms, -1.0).split(list(counts))])
    compared = sizes.split(list(counts)) if scope == "tensor" else [sizes]
    return torch.cat([_largest(part, round(share * len(part))) for part in compared])


def _relative(norms: Tensor) -> Tensor:
    """Of a layer, over the mean of those that are left, which are not negative; the largest is made infinite."""
    mean = norms[norms >= 0].mean()
    found = torch.where(norms > 0, norms / mean, norms)
    found[norms.argmax()] = torch.inf
    return found


def _largest(sizes: Tensor, gone: int) -> Tensor:
    stay = max(len(sizes) - gone, int(sizes.isinf().sum()))
    kept = torch.zeros_like(sizes, dtype=torch.bool)
    kept[sizes.argsort(descending=True, stable=True)[:stay]] = True
    return kept


class UnitPruning(InRounds):
    """Prunes units, and keeps the weights of pruned ones and their optimizer state at 0 after every step.

    Units, their removal and what is exported are DemP's.  Which are pruned does not depend on sharding but for rounding
    of float64.  A round copies the weights that make units to the CPU; under ZeRO each step from the first round on
    gathers the weights once more.  Memory: 8 bytes per trainable weight, from the first round on.

    Args:
        rounds: see `InRounds`, as `rewind` and `rewind_to`.
        scope: of `largest_units`.
    """

    def __init__(self, rounds: Sequence[Round], *, scope: Scope, rewind: Rewind, rewind_to: int = 1) -> None:
        super().__init__(rounds, rewind=rewind, rewind_to=rewind_to)
        self._scope = scope
        self.units: list[Units] = []
        self._removal: Removal | None = None
        self._cost: Multiplications | None = None
        self._world: World | None = None

    @property
    def kept(self) -> dict[str, Tensor]:
        """By producer, bool [count]: the units that were not removed."""
        assert self._removal is not None
        return self._removal.kept

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Finds the units; those with frozen weights, which could not become 0, are none."""
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        self.units = [units for units in removable_units(network) if not frozen & units.tensors().keys()]
        if not self.units:
            raise RecipeError(
                f"methods: magnitude_pruning.structure = units: {type(network).__name__} has no removable units that "
                "are trained, which lie between two layers with a ReLU in an nn.Sequential, as in the ResNets of "
                "lowland: choose another model, or set structure: weights"
            )
        self._removal = Removal(network, self.units)
        self._cost = Multiplications(network, problem.shape)

    def attach(self, engine: Engine, world: World) -> None:
        """Forgets where another engine's pieces lay."""
        assert self._removal is not None
        self._world = world
        self._removal.attach()

    def prune(self, engine: Engine, pieces: Sequence[StatePiece], sparsity: float) -> None:
        """Chooses by the norms of now."""
        assert self._removal is not None
        assert self._world is not None
        makers = {f"{one.producer}.weight" for one in self.units}
        norms = self._removal.elements(engine).row_norms(pieces, makers)
        if not engine.replicated:
            norms = torch.tensor(self._world.sum(norms.tolist()), dtype=torch.float64)
        counts = [one.count for one in self.units]
        self._removal.keep(largest_units(norms, counts, self._removal.flags, sparsity, self._scope))

    def after_all(self, engine: Engine) -> None:
        """Removed units back to 0."""
        if self.begun:
            assert self._removal is not None
            self._removal.zero(engine)

    def state(self) -> dict[str, Tensor]:
        """Which units are left too."""
        assert self._removal is not None
        return super().state() | {"kept": self._removal.flags.to(torch.uint8)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores it."""
        assert self._removal is not None
        super().load_state(state)
        self._removal.keep(state["kept"])

    def exported(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the removed units."""
        assert self._removal is not None
        return self._removal.exported(weights)

    def metrics(self) -> dict[str, float]:
        """From the first round on, the share of removable units that were removed, and FLOPs."""
        if not self.begun:
            return {}
        assert self._removal is not None
        assert self._cost is not None
        return {"removed": self._removal.removed, **self._removal.multiplications(self._cost)}
