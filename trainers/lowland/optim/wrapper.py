"""Optimizers around optimizers: the same parameter groups, the base's step, and something before or after it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.optim.base import LayoutOptimizer
from lowland.optim.layers import layers
from lowland.optim.layout import Fragment, Gradients, Layout
from lowland.optim.passes import Evaluations, MultiPass
from lowland.optim.point import OwnWeights, Point

__all__ = ["Wrapper", "create_state", "shared_state"]


def create_state(optimizer: Optimizer, layout: Layout) -> None:
    """Makes the optimizer, and all inside it, create its (zero) state; no weight changes."""
    if isinstance(optimizer, LayoutOptimizer):
        optimizer.attach(layout)
        optimizer.create_state()
    else:
        _step_with_zero_gradients(optimizer, layout)


def _step_with_zero_gradients(optimizer: Optimizer, layout: Layout) -> None:
    """At rate zero; the state of torch's own optimizers comes with their first step."""
    kept = [(group["lr"], group["params"]) for group in optimizer.param_groups]
    # With offload DeepSpeed fills these very gradients again.
    gradients = [fragment.tensor.grad for fragment in layout.fragments]
    for index, group in enumerate(optimizer.param_groups):
        group["lr"] = 0.0
        group["params"] = [fragment.tensor for fragment in layout.fragments if fragment.group == index]
    for fragment in layout.fragments:
        fragment.tensor.grad = torch.zeros_like(fragment.tensor)
    optimizer.step()
    for fragment, gradient in zip(layout.fragments, gradients, strict=True):
        fragment.tensor.grad = gradient
    for group, (rate, params) in zip(optimizer.param_groups, kept, strict=True):
        group["lr"], group["params"] = rate, params


class Wrapper(LayoutOptimizer):
    """Base of optimizers around another one; an engine sees one optimizer.

    Args:
        base: the optimizer inside; its groups are this one's groups.
    """

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        self._point: Point | None = None
        super().__init__(base.param_groups, base.defaults)

    @property
    def parts(self) -> tuple[Optimizer, ...]:
        """What it is made of."""
        return (self.base,)

    def _after(self, layout: Layout, fragments: Sequence[Fragment]) -> None:
        """Something after the base's step of these fragments, whose gradients are still there."""

    @property
    def several_passes(self) -> bool:
        """Whether a step inside takes several gradients; it has ended when `landed` is called, if there is such."""
        return any(isinstance(layer, MultiPass) for layer in layers(self.base))

    def _shown(self) -> list[Fragment]:
        """The fragments of the groups that an engine shows in this call, whether they have a gradient or not."""
        return [self._known(p) for group in self.param_groups for p in group["params"]]

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, model: nn.Module | None = None
    ) -> float | None:
        """Updates every parameter that has a gradient.

        Args:
            closure: evaluates the model anew (`zero_grad`, forward, backward) and returns the loss.  An optimizer
                that takes several gradients per step calls it as often, with the same random numbers.
            model: whose BatchNorm statistics only the first evaluation is to update.

        Returns:
            The loss at the weights before the step.

        Raises:
            RuntimeError: several gradients are needed and there is no closure.
        """
        if self._prepared or not any(isinstance(layer, MultiPass) for layer in layers(self)):
            return super().step(closure)
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__} takes several gradients per step: call step(closure), or advance() after "
                "each backward pass until it returns False"
            )
        evaluations = Evaluations(model, self.layout.fragments[0].tensor.device)
        first: float | None = None
        while True:
            with torch.enable_grad(), evaluations.evaluation():
                loss = closure()
            first = loss if first is None else first
            if not self.advance():
                return first

    @torch.no_grad()
    def advance(self) -> bool:
        """Uses the gradients at hand, in anyone's own loop: moves the weights to look elsewhere, or steps.

        A step of which a gradient is not finite changes no weight.

        Returns:
            Whether the same batch is to be evaluated once more.
        """
        if self._point is None:
            self._point = Point(self, OwnWeights(self, self.layout))
        if not self._point.steps_now():
            return self._point.ascend().finite
        self._point.arrive()
        norm = self.layout.squares((segment, gradient) for segment, _, gradient in self.layout.gradients()).sum()
        finite = bool(norm.isfinite())
        if finite:
            super().step()
        self.zero_grad()
        return self._point.go_on(finite)

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

    def squared_norm(self) -> Tensor | None:
        """Its own, or the base's."""
        own = super().squared_norm()
        return self.base.squared_norm() if own is None and isinstance(self.base, LayoutOptimizer) else own

    def finish(self) -> None:
        """Ends the base's step too."""
        super().finish()
        if isinstance(self.base, LayoutOptimizer):
            self.base.finish()

    def _step(self) -> None:
        if not self._settled:
            self._settle()
            self._settled = True
        kept, self.base.param_groups = self.base.param_groups, self.param_groups
        self.base.step()
        if self.layout.by_group:  # an engine shows some groups only
            self.base.param_groups = kept
        stepped = (p for group in self.param_groups for p in group["params"] if p.grad is not None)
        self._after(self.layout, [self._known(p) for p in stepped])

    def create_state(self) -> None:
        """Makes its own state and the base's."""
        for fragment in self.layout.fragments:
            self._create(self.param_groups[fragment.group], fragment)
        create_state(self.base, self.layout)

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
