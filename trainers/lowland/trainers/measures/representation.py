"""What a network's last layer is given and what it makes of it, for any network."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lowland.trainers.blocks import repeated_blocks
from lowland.trainers.models.heads import ETFClassifier

__all__ = ["Layers", "last_layer"]


@dataclass
class Layers:
    """What the latest forward pass went through, its last layer at the end."""

    _calls: list[tuple[nn.Module, Tensor, Tensor]] = field(default_factory=list)

    @property
    def features(self) -> Tensor:
        """[B, d]: what the last layer is given if it is a head, else what it gives; positions averaged."""
        _, given, made = self._last()
        features = given if self.has_head else made
        return features.flatten(1, -2).mean(1) if features.dim() > 2 else features

    @property
    def has_head(self) -> bool:
        """Whether the last layer is a classifier (linear, or of fixed vectors), so that it gives logits."""
        return isinstance(self._last()[0], nn.Linear | ETFClassifier)

    @property
    def output(self) -> Tensor:
        """[B, ..., C]: what the last layer gives; logits, unless the head is part of the loss."""
        return self._last()[2]

    def _last(self) -> tuple[nn.Module, Tensor, Tensor]:
        if not self._calls:
            raise RuntimeError("no layer that is a module of its own was called")
        return self._calls[-1]

    def _enter(self, module: nn.Module, given: Any, made: Any) -> None:
        first = given[0] if given else None
        if not isinstance(first, Tensor) or not isinstance(made, Tensor) or made.dim() < 2:
            return
        if first.is_floating_point() and made.is_floating_point():
            self._calls[:] = [(module, first, made)]


@contextmanager
def last_layer(module: nn.Module) -> Iterator[Layers]:
    """Sees which layer comes last in each forward pass inside.

    The layers of repeated blocks are not asked, since one of them is never the last and blocks may be compiled.
    """
    inside = {id(layer) for block in repeated_blocks(module) for layer in block.modules()}
    layers = Layers()
    hooks = [
        layer.register_forward_hook(layers._enter)
        for layer in module.modules()
        if not any(True for _ in layer.children()) and id(layer) not in inside
    ]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()
