"""The weights that the model shows where they are not the masters: perturbed for a gradient, averaged to evaluate."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim import kernels
from lowland.optim.layers import evaluation_weights, layers
from lowland.optim.layout import Gradients, Layout, local
from lowland.optim.passes import Landing, MultiPass

__all__ = ["OwnWeights", "Point", "Weights"]


class Weights(Protocol):
    """Where masters, the model's weights and gradients are kept."""

    @property
    def layout(self) -> Layout:
        """The masters."""

    @property
    def masters_are_weights(self) -> bool:
        """Whether the model computes with the masters themselves."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights."""

    def gradients(self) -> Gradients:
        """Each segment's gradient, not clipped: views that a step sees."""

    def gradients_changed(self) -> None:
        """Brings in line what is known of the gradients besides, after they were written through `gradients`."""

    def masters_changed(self) -> None:
        """Copies the masters into the model's weights; collective."""

    def discard_gradients(self) -> None:
        """Forgets the accumulated gradients."""


class OwnWeights:
    """Those of a loop without an engine: the model computes with the parameters that the optimizer steps."""

    masters_are_weights = True

    def __init__(self, optimizer: Optimizer, layout: Layout) -> None:
        self._optimizer, self.layout = optimizer, layout

    @property
    def dtype(self) -> torch.dtype:
        """The masters' own."""
        return self.layout.fragments[0].tensor.dtype

    def gradients(self) -> Gradients:
        """Each parameter's gradient."""
        return self.layout.gradients()

    def gradients_changed(self) -> None:
        """Nothing else is known of them."""

    def masters_changed(self) -> None:
        """Nothing to do."""

    def discard_gradients(self) -> None:
        """Forgets the accumulated gradients."""
        self._optimizer.zero_grad()


@dataclass(frozen=True)
class Ascended:
    """What came of the gradients that a point was to move by."""

    norm: float
    finite: bool
    """Whether the point has moved, so that the batch is to be evaluated again."""


class Point:
    """Where the model stands, for optimizers that take gradients or are evaluated at other weights than the masters.

    Masters are displaced only for the moment in which the model takes them over, and come back from a copy, to the
    bit; where the model computes with the masters themselves, the copy stays until the model is to leave.
    """

    def __init__(self, optimizer: Optimizer, weights: Weights) -> None:
        self._method = next((layer for layer in layers(optimizer) if isinstance(layer, MultiPass)), None)
        self._optimizer, self._weights = optimizer, weights
        self._masters: list[Tensor] | None = None
        self._shift: Tensor | None = None
        self._measures = True

    @property
    def several_passes(self) -> bool:
        """Whether a step may evaluate its batch more than once."""
        return self._method is not None

    @property
    def per_rank(self) -> bool:
        """Whether the next gradients are to be each rank's own, not averaged."""
        return self._method is not None and self._method.per_rank and not self._method.steps_now()

    def steps_now(self) -> bool:
        """Whether the gradients at hand are to step with."""
        return self._method is None or self._method.steps_now()

    @torch.no_grad()
    def ascend(self) -> "Ascended":
        """Moves to where the optimizer wants the next gradients, unless those at hand are not finite."""
        assert self._method is not None
        norm = self._method.ascend(self._weights.gradients())
        if self._method.per_rank:
            norm = _over_ranks(norm, self._weights.layout)
        if not math.isfinite(norm):
            self._weights.discard_gradients()
            self.go_on(False)
            return Ascended(norm, finite=False)
        self._show(self._method.displace)
        self._weights.discard_gradients()
        return Ascended(norm, finite=True)

    @torch.no_grad()
    def arrive(self) -> None:
        """Makes ready for a step: back to the masters, with the gradients to step with."""
        self.leave()
        if self._method is not None and self._method.merge(self._weights.gradients()):
            self._weights.gradients_changed()

    def leave(self) -> None:
        """Back to the masters, as far as the model computes with them; an engine's step brings the rest."""
        if self._masters is not None:
            torch._foreach_copy_(self._tensors(), self._masters)
            self._masters = None

    @torch.no_grad()
    def go_on(self, applied: bool) -> bool:
        """After a step: says whether it goes on, and moves; after a refused one, takes back."""
        if self._method is None:
            return False
        if not applied:
            self.leave()
            self._method.abandon()
            self._weights.masters_changed()
            return False
        if self._method.again():
            self._show(self._method.displace)
            return True
        # The innermost first: an average is taken of what an outer step made.
        around = [layer.landed for layer in reversed(list(layers(self._optimizer))) if isinstance(layer, Landing)]
        if any([self._method.land(), *(landed() for landed in around)]):
            self._weights.masters_changed()
        return False

    @contextmanager
    def at_evaluation_weights(self) -> Iterator[None]:
        """The model shows the optimizer's evaluation weights inside, if it has any."""
        find = evaluation_weights(self._optimizer)
        if find is None:
            yield
            return

        def place() -> None:
            for fragment, tensor in zip(self._weights.layout.fragments, self._tensors(), strict=True):
                tensor.copy_(find(fragment))

        with torch.no_grad():
            self._show(place)
        try:
            yield
        finally:
            with torch.no_grad():
                self.leave()
                self._weights.masters_changed()

    def metrics(self) -> dict[str, float]:
        """How much of the last measured displacement e survived the rounding of weights to the model's type.

        `shift_ratio` is |shift| / |e| and `shift_cosine` the cosine between them, where shift is what the weights of
        the model did: 1 and 1 if nothing was lost.  Empty where masters are not rounded.  Measured once between two
        calls, since it costs some passes over the masters.
        """
        self._measures = True
        if self._shift is None:
            return {}
        moved, both, shifted = self._shift.sum(0).tolist()
        if not moved or not shifted:
            return {"shift_ratio": 0.0, "shift_cosine": 0.0}
        return {"shift_ratio": math.sqrt(shifted / moved), "shift_cosine": both / math.sqrt(moved * shifted)}

    def _show(self, displace: Callable[[], object]) -> None:
        self.leave()
        self._masters = [tensor.clone() for tensor in self._tensors()]
        displace()
        if self._measures and self._weights.dtype != self._masters[0].dtype:
            self._shift, self._measures = self._measured(self._masters), False
        self._weights.masters_changed()
        if not self._weights.masters_are_weights:
            self.leave()

    def _measured(self, masters: list[Tensor]) -> Tensor:
        """<e, e>, <e, shift> and <shift, shift> of every parameter: float64 [parameters, 3]."""
        layout, dtype = self._weights.layout, self._weights.dtype
        segments, rows = [], [torch.zeros(0, 3, dtype=torch.float64, device=masters[0].device)]
        for fragment, master in zip(layout.fragments, masters, strict=True):
            for segment in fragment.segments:
                before, now = segment.of(master), segment.of(fragment.tensor.detach())
                shift = now.to(dtype).to(now.dtype) - before.to(dtype).to(now.dtype)
                segments.append(segment)
                rows.append(kernels.products([now - before], [shift]))
        return layout.total(segments, torch.cat(rows))

    def _tensors(self) -> list[Tensor]:
        return [local(fragment.tensor.detach()) for fragment in self._weights.layout.fragments]


def _over_ranks(norm: float, layout: Layout) -> float:
    """The sum of all ranks' norms, which is finite if each is."""
    if not dist.is_available() or not dist.is_initialized():
        return norm
    total = torch.tensor([norm], dtype=torch.float64, device=layout.fragments[0].tensor.device)
    dist.all_reduce(total)
    return float(total)
