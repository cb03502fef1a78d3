"""Several gradients of a batch in one step: what is asked of such an optimizer, and what keeps them comparable."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lowland.optim.layout import Gradients

__all__ = ["Evaluations", "Landing", "MultiPass", "frozen_statistics"]


@runtime_checkable
class MultiPass(Protocol):
    """An optimizer whose step takes gradients of the same batch at several weights.

    After each backward pass it is asked `steps_now`.  If not, `ascend` gets the gradients, the model is shown the
    weights that `displace` makes, and the same batch is evaluated again.  If so, `merge` and a step follow, and if
    `again` then, the model is displaced once more; else `land` ends it.  Who asks brings the masters back after
    each `displace` (`lowland.optim.Point`).
    """

    per_rank: bool
    """Whether `ascend` gets the gradient of each rank's own part of the batch, not averaged over ranks."""

    def steps_now(self) -> bool:
        """Whether the gradients at hand are those to step with."""

    def ascend(self, gradients: Gradients) -> float:
        """Decides where the next gradients are taken; returns a norm of these, finite only if they are.

        The gradients stay as they are until `displace`.
        """

    def displace(self) -> None:
        """Moves the masters, in place, to where the next gradients are taken."""

    def merge(self, gradients: Gradients) -> bool:
        """Makes of the last gradients, in place, those to step with; returns whether it changed them."""

    def again(self) -> bool:
        """Whether the step that was just taken goes on with more gradients of this batch."""

    def land(self) -> bool:
        """Ends the step; returns whether masters were changed beside the base's own step."""

    def abandon(self) -> None:
        """Forgets the step under way: gradients were not finite.  Masters that were changed are taken back."""


@runtime_checkable
class Landing(Protocol):
    """Something around a `MultiPass` optimizer that acts when all of its step is done."""

    def landed(self) -> bool:
        """After the end of a step of several passes that was applied; returns whether masters were changed."""


class Evaluations:
    """The evaluations of one batch: the same dropout masks in all, and running statistics from the first alone.

    Args:
        model: whose normalisation layers keep running statistics; None leaves them alone.
        device: besides the CPU, where random numbers are drawn.
    """

    def __init__(self, model: nn.Module | None, device: torch.device) -> None:
        self._model, self._device = model, device
        self._generators: list[Tensor] | None = None

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """One forward and backward pass, with its cut into micro-batches."""
        if self._generators is None:
            self._generators = self._states()
            yield
            return
        self._restore(self._generators)
        with frozen_statistics(self._model):
            yield

    def _states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _restore(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)


@contextmanager
def frozen_statistics(model: nn.Module | None) -> Iterator[None]:
    """No forward pass inside updates running statistics, and none sees other values for it.

    In training BatchNorm normalises by the batch's own statistics, so only what it keeps for evaluation differs.
    """
    tracking: list[Any] = [] if model is None else [layer for layer in model.modules() if _tracks(layer)]
    kept = [_hide(layer) for layer in tracking]
    try:
        yield
    finally:
        for layer, buffers in zip(tracking, kept, strict=True):
            layer._buffers.update(buffers)
            layer.track_running_stats = True


def _tracks(layer: Any) -> bool:
    return isinstance(layer, (_BatchNorm, _InstanceNorm)) and layer.training and layer.track_running_stats


def _hide(layer: Any) -> dict[str, Tensor | None]:
    """Lets a layer that is training take its batch's statistics as if it kept none."""
    layer.track_running_stats = False
    hidden = {name: layer._buffers[name] for name in ("running_mean", "running_var")}
    layer._buffers.update(dict.fromkeys(hidden))
    return hidden
