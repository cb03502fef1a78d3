"""Losses and gradients of a fixed batch at any weights, under any engine, and none of it seen by the training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowland.optim import Gradients
from lowland.optim.layout import Fragment, Segment, local
from lowland.trainers.engines import Engine, Inputs
from lowland.trainers.tasks import StepInputs
from lowland.trainers.world import World

__all__ = ["Probe"]

Vector = Sequence[Tensor]
"""Of the masters' space: one tensor for each of this rank's segments, fp32, in their order."""


class Probe:
    """A model in training, seen from outside.

    Vectors are spread over ranks as the masters are, so that a measure needs no rank to hold a whole model.

    Args:
        engine: of the training.
        steps: global batches, of which this rank has its part.
        world: the ranks.
    """

    def __init__(self, engine: Engine, steps: Sequence[StepInputs], world: World) -> None:
        self._engine, self._steps, self._world = engine, steps, world
        self._weights = engine.weights
        self._layout = engine.weights.layout
        self._weight = sum(step.weight for step in steps)

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self._engine.module

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Evaluation mode, and the generators as they were afterwards; a measure is taken inside."""
        states = torch.get_rng_state()
        on_device = torch.cuda.get_rng_state(self._world.device) if self._world.device.type == "cuda" else None
        self.module.eval()
        try:
            yield
        finally:
            self.module.train()
            torch.set_rng_state(states)
            if on_device is not None:
                torch.cuda.set_rng_state(on_device, self._world.device)

    def inputs(self) -> Iterator[Inputs]:
        """This rank's micro-batches, on its device."""
        for step in self._steps:
            for micro in step.micro_batches:
                yield {k: None if x is None else x.to(self._world.device) for k, x in micro.items()}

    def loss(self) -> float:
        """The mean loss of the batch at the weights shown; collective."""
        with torch.no_grad():
            total = sum(float(self._engine.evaluate(inputs)) for inputs in self.inputs())
        return self._world.sum([total])[0] / self._weight

    def gradient(self) -> tuple[float, Vector]:
        """The mean loss at the weights shown, and its gradient; collective."""
        inputs = list(self.inputs())
        last = len(inputs) - 1
        total = sum(
            float(self._engine.accumulate(micro, scale=1 / self._weight, last=index == last))
            for index, micro in enumerate(inputs)
        )
        found = self.vector(self._weights.gradients())
        self._weights.discard_gradients()
        return self._world.sum([total])[0] / self._weight, found

    def vector(self, gradients: Gradients) -> Vector:
        """Copies of gradients as a vector, zero where there is none."""
        held = {(id(tensor), segment.parameter): gradient for segment, tensor, gradient in gradients}
        made = [torch.zeros_like(piece) for piece in self.masters()]
        for (fragment, segment), piece in zip(self._segments(), made, strict=True):
            found = held.get((id(fragment.tensor), segment.parameter))
            if found is not None:
                piece.copy_(found.detach().reshape(piece.shape))
        return made

    def masters(self) -> Vector:
        """The masters themselves, as views."""
        return [segment.of(fragment.tensor.detach()) for fragment, segment in self._segments()]

    def random(self) -> Vector:
        """A vector of standard normal numbers, the same however it is spread over ranks."""
        made = []
        for (_, segment), piece in zip(self._segments(), self.masters(), strict=True):
            generator = torch.Generator().manual_seed(segment.parameter)
            whole = torch.randn(self._layout.parameters[segment.parameter].numel, generator=generator)
            made.append(self._part(whole, segment, piece))
        return made

    def of(self, whole: Mapping[str, Tensor]) -> Vector:
        """This rank's part of whole parameters by name, as a vector."""
        return [
            self._part(whole[self._layout.parameters[segment.parameter].name].detach(), segment, piece)
            for (_, segment), piece in zip(self._segments(), self.masters(), strict=True)
        ]

    def products(self, first: Vector, second: Vector) -> tuple[float, float, float]:
        """<first, first>, <first, second> and <second, second>, over all ranks; collective."""
        segments = [segment for _, segment in self._segments()]
        sums = self._layout.products(zip(segments, first, second, strict=True)).sum(0)
        one, both, other = sums.tolist()
        return one, both, other

    def dot(self, first: Vector, second: Vector) -> float:
        """<first, second>, over all ranks; collective."""
        return self.products(first, second)[1]

    @contextmanager
    def displaced(self, direction: Vector, distance: float) -> Iterator[None]:
        """The model shows masters + distance * direction inside; the masters come back to the bit; collective."""
        with self.showing([piece + distance * way for piece, way in zip(self.masters(), direction, strict=True)]):
            yield

    @contextmanager
    def showing(self, weights: Vector) -> Iterator[None]:
        """The model shows other weights inside; the masters come back to the bit; collective."""
        tensors = [local(fragment.tensor.detach()) for fragment in self._layout.fragments]
        copies = [tensor.clone() for tensor in tensors]
        with torch.no_grad():
            for piece, shown in zip(self.masters(), weights, strict=True):
                piece.copy_(shown)
            self._weights.masters_changed()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, copy in zip(tensors, copies, strict=True):
                    tensor.copy_(copy)
                self._weights.masters_changed()

    def _segments(self) -> Iterator[tuple[Fragment, Segment]]:
        return ((fragment, segment) for fragment in self._layout.fragments for segment in fragment.segments)

    @staticmethod
    def _part(whole: Tensor, segment: Segment, piece: Tensor) -> Tensor:
        part = whole.reshape(-1)[segment.offset : segment.offset + segment.numel]
        return part.to(piece.device, torch.float32).reshape(piece.shape)
