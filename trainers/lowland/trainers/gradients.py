"""The gradients of a step: of one pass over its micro-batches, or of as many as methods and optimizer want."""

from contextlib import nullcontext

import torch
from torch import Tensor

from lowland.optim import Evaluations
from lowland.trainers.ahead import moved
from lowland.trainers.engines import Engine
from lowland.trainers.tasks import StepInputs, Task
from lowland.trainers.world import World


class StepGradients:
    """How gradients come about.

    Args:
        task: whose methods have a say.
        engine: which holds them.
        world: the ranks.
    """

    def __init__(self, task: Task, engine: Engine, world: World) -> None:
        self._methods, self._engine, self._world = task.methods, engine, world

    def evaluations(self, inputs: StepInputs) -> Evaluations | None:
        """What keeps the passes over a batch comparable; None where there is one pass."""
        methods = self._methods
        several = self._engine.several_passes or methods.two_passes(len(inputs.micro_batches))
        several = several or methods.several_gradients is not None
        return Evaluations(self._engine.module, self._world.device) if several else None

    def take(self, inputs: StepInputs, evaluations: Evaluations | None) -> Tensor:
        """The gradients of a step at the weights shown, made of several if a method wants that; returns the loss."""
        several = self._methods.several_gradients
        if several is None:
            return self._one(inputs, evaluations)
        weights, taken = self._engine.weights, []
        for part in range(several.parts):
            several.part = part
            loss = self._one(inputs, evaluations)
            if part < several.parts - 1:
                taken.append([gradient.detach().clone() for _, _, gradient in weights.gradients()])
                weights.discard_gradients()
        several.combine(taken, weights, self._world, replicated=self._engine.replicated)
        return loss

    def _one(self, inputs: StepInputs, evaluations: Evaluations | None) -> Tensor:
        """A gradient of the batch, after its numbers are collected if need be."""
        if self._methods.two_passes(len(inputs.micro_batches)):
            assert evaluations is not None
            with evaluations.evaluation():
                self._collect(inputs)
        with evaluations.evaluation() if evaluations is not None else nullcontext():
            loss = self._forward_backward(inputs)
        self._methods.end_pass()
        return loss

    def _forward_backward(self, inputs: StepInputs) -> Tensor:
        """Accumulates the gradients of a step; returns this rank's sum of losses."""
        last = len(inputs.micro_batches) - 1
        losses = []
        for index, micro in enumerate(inputs.micro_batches):
            losses.append(
                self._engine.accumulate(moved(micro, self._world.device), scale=1 / inputs.weight, last=index == last)
            )
        return torch.stack(losses).double().sum()

    def _collect(self, inputs: StepInputs) -> None:
        """A pass without gradients, for methods whose objective is of the whole batch."""
        objective = self._methods.objective
        assert objective is not None
        with torch.no_grad(), objective.collecting():
            for micro in inputs.micro_batches:
                self._engine.evaluate(moved(micro, self._world.device))
