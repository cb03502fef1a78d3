"""Units that a training takes out: their weights and optimizer state stay 0, and the export leaves them out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowland.trainers.engines import Engine
from lowland.trainers.methods.elements import Elements, flags_of
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.models.units import Units, sliced


class Removal:
    """Which units of a network are left, and what follows from it.

    Args:
        network: whole.
        units: of it, all that may be removed.
    """

    def __init__(self, network: nn.Module, units: Sequence[Units]) -> None:
        self._network, self._units = network, tuple(units)
        self.flags = torch.ones(sum(one.count for one in units), dtype=torch.bool)
        """Bool [units], one behind the other, on the CPU: those that are left."""
        self._elements: Elements | None = None
        self._masks: list[Tensor | None] | None = None

    @property
    def kept(self) -> dict[str, Tensor]:
        """The same by producer."""
        return flags_of(self._units, self.flags)

    @property
    def removed(self) -> float:
        """Share of the units that are not left."""
        return 1 - int(self.flags.sum()) / len(self.flags)

    def keep(self, flags: Tensor) -> None:
        """Leaves these alone."""
        self.flags, self._masks = flags.bool().cpu(), None

    def attach(self) -> None:
        """Forgets where another engine's pieces lay."""
        self._elements = self._masks = None

    def elements(self, engine: Engine) -> Elements:
        """Where the elements of the engine's pieces belong; found once."""
        if self._elements is None:
            named = dict(engine.module.named_parameters())
            prefix = next(name for name, module in engine.module.named_modules() if module is self._network)
            shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in named.items()}
            self._elements = Elements(list(engine.pieces()), shapes, prefix + "." if prefix else "", self._units)
        return self._elements

    @torch.no_grad()
    def zero(self, engine: Engine) -> None:
        """Puts removed units back to 0; collective."""
        if self._masks is None:
            self._masks = self._masks_of(self.elements(engine))
        tensors: list[Tensor] = []
        masks: list[Tensor] = []
        for piece, mask in zip(engine.pieces(), self._masks, strict=True):
            if mask is not None:
                tensors += piece.tensors.values()
                masks += [mask.view_as(tensor) for tensor in piece.tensors.values()]
        if tensors:
            torch._foreach_mul_(tensors, masks)
        engine.masters_changed()

    def _masks_of(self, elements: Elements) -> list[Tensor | None]:
        """By piece, bool: what is left of it; None is all."""
        kept = self.kept
        cut = {name for one in self._units if not bool(kept[one.producer].all()) for name in one.tensors()}
        if not cut:
            return [None] * len(elements.names)
        masks = zip(elements.cut(elements.of(self.flags)), elements.inside, strict=True)
        return [mask if name in cut else None for mask, name in masks]

    def exported(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights without removed units."""
        return sliced(weights, self.kept, list(self._units))

    def multiplications(self, cost: Multiplications) -> dict[str, float]:
        """FLOPs of the whole network and of the smaller one."""
        outputs: dict[str, float] = {}
        inputs: dict[str, float] = {}
        for one in self._units:
            share = float(self.kept[one.producer].double().mean())
            outputs |= dict.fromkeys((one.producer, *one.beside), share)
            inputs[one.consumer] = share
        return cost.without(outputs, inputs)
