"""Optimizers around optimizers: the same parameter groups, the base's step, and something before or after it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.base import LayoutOptimizer
from lowland.optim.layout import Fragment, Gradients, Layout

__all__ = ["MultiPass", "Wrapper", "layers"]


def layers(optimizer: Optimizer) -> Iterator[Optimizer]:
    """An optimizer and all that it is made of, the outermost first; each has a `state` of its own."""
    yield optimizer
    for part in getattr(optimizer, "parts", ()):
        yield from layers(part)


@runtime_checkable
class MultiPass(Protocol):
    """An optimizer whose step takes gradients of the same batch at several weights.

    After each backward pass the engine asks `steps_now`.  If not, it calls `ascend` with the gradients, shows the
    model `displaced` weights, and the same batch is evaluated again.  If so, it steps; if `again` then, the model sees
    `displaced` weights once more.  The masters are never touched by a displacement.
    """

    def steps_now(self) -> bool:
        """Whether the gradients at hand are those to step with."""

    def ascend(self, gradients: Gradients) -> Tensor:
        """Moves the point where the next gradients are taken; returns the gradients' norm, 0-d, equal on all ranks."""

    def again(self) -> bool:
        """Whether the step that was just taken goes on with more gradients of this batch."""

    def displaced(self, fragment: Fragment) -> Tensor:
        """The weights, shaped like the fragment, at which the next gradients are taken."""

    def abandon(self) -> None:
        """Forgets the step under way: gradients were not finite; what was changed is taken back."""


class Wrapper(LayoutOptimizer):
    """Base of optimizers around another one; an engine sees one optimizer.

    Args:
        base: the optimizer inside; its groups are this one's groups.
    """

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        super().__init__(base.param_groups, base.defaults)

    @property
    def parts(self) -> tuple[Optimizer, ...]:
        """What it is made of."""
        return (self.base,)

    def _after(self, layout: Layout, fragments: Sequence[Fragment]) -> None:
        """Something after the base's step of these fragments, whose gradients are still there."""

    def attach(self, layout: Layout) -> None:
        """Tells the base as well."""
        super().attach(layout)
        if isinstance(self.base, LayoutOptimizer):
            self.base.attach(layout)

    def prepare(self, gradients: Gradients) -> None:
        """Takes the base's sums and its own."""
        kept = list(gradients)
        super().prepare(kept)
        if isinstance(self.base, LayoutOptimizer):
            self.base.attach(self.layout)
            self.base.prepare(kept)

    def finish(self) -> None:
        """Ends the base's step too."""
        super().finish()
        if isinstance(self.base, LayoutOptimizer):
            self.base.finish()

    def _step(self) -> None:
        if not self._settled:
            self._settle()
            self._settled = True
        self.base.param_groups = self.param_groups  # an engine may show some groups only
        self.base.step()
        stepped = (p for group in self.param_groups for p in group["params"] if p.grad is not None)
        self._after(self.layout, [self._known(p) for p in stepped])

    def create_state(self) -> None:
        """Makes its own state and the base's."""
        for fragment in self.layout.fragments:
            self._create(self.param_groups[fragment.group], fragment)
        if isinstance(self.base, LayoutOptimizer):
            self.base.attach(self.layout)
            self.base.create_state()

    def state_dict(self) -> dict[str, Any]:
        """Its own state, and `base`."""
        return {**super().state_dict(), "base": self.base.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "base"})
        self.base.load_state_dict(state_dict["base"])
        self.base.param_groups = self.param_groups

    def shared_state(self) -> dict[str, float]:
        """The base's, below `base/`, and its own."""
        return {f"base/{key}": value for key, value in shared_state(self.base).items()} | self._shared()

    def load_shared_state(self, state: Mapping[str, float]) -> None:
        """Restores `shared_state`."""
        if isinstance(self.base, LayoutOptimizer):
            self.base.load_shared_state({k.removeprefix("base/"): v for k, v in state.items() if k.startswith("base/")})
        self._load_shared({k: v for k, v in state.items() if not k.startswith("base/")})

    def _shared(self) -> dict[str, float]:
        """Its own state of no single tensor."""
        return {}

    def _load_shared(self, state: Mapping[str, float]) -> None:
        """Restores `_shared`."""


def shared_state(optimizer: Optimizer) -> dict[str, float]:
    """State of an optimizer that belongs to no single parameter; empty for torch's."""
    return optimizer.shared_state() if isinstance(optimizer, LayoutOptimizer) else {}
