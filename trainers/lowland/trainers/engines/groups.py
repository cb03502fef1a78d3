"""Groups of workers that exchange no gradients: DiLoCo's, where every worker holds the whole model."""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim import DiLoCo, LayoutOptimizer, layers, shared_state
from lowland.trainers.engines.state import GROUP
from lowland.trainers.world import World

Values = dict[str, Tensor | float]


class WorkerGroups:
    """This rank's group, and what a checkpoint must hold of the others.

    Between two outer steps the groups differ in their weights, and always in the state of the inner optimizer.  A
    checkpoint's pieces are those of group 0; every other group's first rank keeps its own beside them,
    under `group <index>/...`.  A group that a checkpoint knows nothing of goes on from group 0's state, so that their
    number may grow; if it shrinks, the movements of those left out since the last outer step are lost.

    Args:
        outer: the optimizer that brings the groups together.
        world: all ranks, of which each group has equally many consecutive ones.
    """

    def __init__(self, outer: DiLoCo, world: World) -> None:
        self._outer, self._world = outer, world
        self.size = world.size // outer.groups
        self.index = world.rank // self.size
        self.process_group, _ = dist.new_subgroups(self.size)
        self._shared: Values = {}

    @classmethod
    def of(cls, optimizer: Optimizer, world: World) -> "WorkerGroups | None":
        """The groups that an optimizer asks for; None where all workers train together."""
        outer = next((layer for layer in layers(optimizer) if isinstance(layer, DiLoCo)), None)
        return cls(outer, world) if outer is not None and outer.groups > 1 else None

    def agreed(self, norm: float) -> float:
        """The mean over groups, which is finite if each is: all step or none does, so that rounds stay together."""
        return self._world.sum([norm])[0] / self._world.size

    def state(self) -> dict[str, Values]:
        """This group's weights and inner state by parameter, on its first rank; group 0's are the pieces."""
        if self.index == 0 or self._world.rank % self.size:
            return {}
        found: dict[str, Values] = {}
        for name, values in self._values():
            found[name] = {self._prefix + key: value for key, value in values.items()}
        for layer in self._inner():
            for name, owned in layer.owned_state().items():
                found[name] |= {f"{self._prefix}owned/{key}": value for key, value in owned.items()}
        first = self._outer.layout.parameters[0].name
        shared = shared_state(self._outer.base)
        found[first] |= {f"{self._prefix}shared/{key}": value for key, value in shared.items()}
        return found

    @torch.no_grad()
    def load(self, read: Callable[[str], Values]) -> None:
        """Restores `state` over that of group 0."""
        if self.index == 0:
            return
        for name, values in self._values():
            saved = self._own(read(name))
            for key, value in values.items():
                if key in saved and isinstance(value, Tensor):
                    value.copy_(torch.as_tensor(saved[key]).view_as(value))
        for layer in self._inner():
            layer.load_owned_state(lambda name: _below("owned/", self._own(read(name))))
        self._shared = _below("shared/", self._own(read(self._outer.layout.parameters[0].name)))

    def load_shared(self) -> None:
        """Restores what belongs to no single parameter and was read by `load`, over that of group 0."""
        if self._shared and isinstance(self._outer.base, LayoutOptimizer):
            self._outer.base.load_shared_state({key: float(value) for key, value in self._shared.items()})

    @property
    def _prefix(self) -> str:
        return f"{GROUP}{self.index}/"

    def _own(self, values: Mapping[str, Tensor | float]) -> Values:
        return _below(self._prefix, values)

    def _inner(self) -> Iterator[LayoutOptimizer]:
        return (layer for layer in layers(self._outer.base) if isinstance(layer, LayoutOptimizer))

    def _values(self) -> Iterator[tuple[str, Values]]:
        """By parameter, its weight and all state that is kept under it inside the outer optimizer."""
        for fragment in self._outer.layout.fragments:
            values: Values = {"weight": fragment.tensor.detach()}
            for layer in layers(self._outer.base):
                values |= layer.state.get(fragment.tensor, {})
            yield self._outer.layout.parameters[fragment.members[0]].name, values


def _below(prefix: str, values: Mapping[str, Tensor | float]) -> Values:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
