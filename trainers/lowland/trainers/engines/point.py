"""The weights that the model shows where they are not the masters: perturbed for a gradient, averaged to evaluate."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim import Fragment, Gradients, Layout, MultiPass, layers
from lowland.trainers.engines.engine import StepOutcome


class Weights(Protocol):
    """Where an engine keeps masters, weights and gradients."""

    layout: Layout

    @property
    def masters_are_weights(self) -> bool:
        """Whether the model computes with the masters themselves."""

    def gradients(self) -> Gradients:
        """Each segment's averaged gradient, not clipped."""

    def masters_changed(self) -> None:
        """Copies the masters into the model's weights; collective."""

    def discard_gradients(self) -> None:
        """Forgets the accumulated gradients."""


class Point:
    """Where the model stands, for optimizers that take gradients or are evaluated at other weights than the masters.

    Masters are displaced only for the moment in which the model takes them over, and come back from a copy, to the
    bit; where the model computes with the masters themselves, the copy stays until the model is to leave.
    """

    def __init__(self, optimizer: Optimizer, weights: Weights) -> None:
        self._method = optimizer if isinstance(optimizer, MultiPass) else None
        self._optimizer, self._weights = optimizer, weights
        self._masters: list[Tensor] | None = None

    def steps_now(self) -> bool:
        """Whether the gradients at hand are to step with."""
        return self._method is None or self._method.steps_now()

    @torch.no_grad()
    def ascend(self) -> StepOutcome:
        """Moves to where the optimizer wants the next gradients."""
        assert self._method is not None
        norm = float(self._method.ascend(self._weights.gradients()))
        self._weights.discard_gradients()
        if not math.isfinite(norm):
            return self._abandon(StepOutcome(False, norm))
        self._show(self._method.displaced)
        return StepOutcome(True, norm, again=True)

    def leave(self) -> None:
        """Back to the masters, as far as the model computes with them; an engine's step brings the rest."""
        if self._masters is None:
            return
        for fragment, master in zip(self._weights.layout.fragments, self._masters, strict=True):
            fragment.tensor.data.copy_(master)
        self._masters = None

    @torch.no_grad()
    def go_on(self, outcome: StepOutcome) -> StepOutcome:
        """After a step: says whether it goes on, and moves; after a refused one, takes back."""
        if self._method is None:
            return outcome
        if not outcome.applied:
            return self._abandon(outcome)
        if not self._method.again():
            return outcome
        self._show(self._method.displaced)
        return StepOutcome(True, outcome.grad_norm, again=True)

    @contextmanager
    def at_evaluation_weights(self) -> Iterator[None]:
        """The model shows the optimizer's evaluation weights inside, if it has any."""
        find = next((f for layer in layers(self._optimizer) if (f := getattr(layer, "evaluation_weights", None))), None)
        if find is None:
            yield
            return
        with torch.no_grad():
            self._show(find)
        try:
            yield
        finally:
            with torch.no_grad():
                self.leave()
                self._weights.masters_changed()

    def _abandon(self, outcome: StepOutcome) -> StepOutcome:
        assert self._method is not None
        self.leave()
        self._method.abandon()
        self._weights.masters_changed()
        return outcome

    def _show(self, find: Callable[[Fragment], Tensor]) -> None:
        self.leave()
        fragments = self._weights.layout.fragments
        self._masters = [fragment.tensor.detach().clone() for fragment in fragments]
        for fragment in fragments:
            fragment.tensor.data.copy_(find(fragment))
        self._weights.masters_changed()
        if not self._weights.masters_are_weights:
            self.leave()
