"""Every worker holds everything: plain torch in one process, DDP in several."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowland.optim import Gradients, Layout, LayoutOptimizer, Point, Weights, shared_state, skips_on_device
from lowland.trainers.engines import state
from lowland.trainers.engines.engine import Inputs, StatePiece
from lowland.trainers.engines.groups import WorkerGroups
from lowland.trainers.engines.outcome import StepOutcome, UnreadOutcome
from lowland.trainers.world import World


class TorchEngine:
    """fp32 weights and optimizer state on every worker; bf16 by autocast."""

    replicated = True

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        layout: Layout,
        *,
        world: World,
        max_grad_norm: float | None,
        autocast: bool,
    ) -> None:
        self.module = module
        self._optimizer = optimizer
        self.layout = layout
        self._world = world
        self._max_grad_norm = max_grad_norm
        self._parameters = list(module.parameters())
        self._skips_on_device = skips_on_device(optimizer)
        self._autocast = autocast
        self._model: nn.Module = module
        if isinstance(optimizer, LayoutOptimizer):
            optimizer.attach(layout)
        self._point = Point(optimizer, self)
        self._apart = WorkerGroups.of(optimizer, world)
        if world.size > 1 and (self._apart is None or self._apart.size > 1):
            process_group = self._apart.process_group if self._apart else None
            model = DistributedDataParallel(module, process_group=process_group, gradient_as_bucket_view=True)
            # Buffers are alike on all ranks as it is, and copying them in each forward pass would cost.
            model.broadcast_buffers = False
            self._model = model

    def accumulate(self, inputs: Inputs, *, scale: float, last: bool) -> Tensor:
        """Forward and backward; DDP, which averages, reduces with the last micro-batch."""
        with self._synchronised(last and not self._point.per_rank):
            loss = self._forward(inputs)
            state.scaled(loss, scale * self._world.size).backward()
        return loss.detach()

    def step(self, lr_factor: float) -> StepOutcome | UnreadOutcome:
        """Clips by the global norm and steps; a norm that is not finite discards the gradients.

        Or moves the point where the next gradients are taken.
        """
        if not self._point.steps_now():
            ascended = self._point.ascend()
            return StepOutcome(ascended.finite, ascended.norm, ascended.finite)
        self._point.arrive()
        # As `get_total_norm`, which first looks at every gradient's device while the GPU waits.
        norms = torch._foreach_norm([p.grad for p in self._parameters if p.grad is not None])
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if self._skips_on_device:
            return self._step_unread(lr_factor, norm)
        grad_norm = float(norm) if self._apart is None else self._apart.agreed(float(norm))
        applied = math.isfinite(grad_norm)
        if applied:
            self._clip_and_step(lr_factor, norm)
        self.discard_gradients()
        return StepOutcome(applied, grad_norm, self._point.go_on(applied))

    def _step_unread(self, lr_factor: float, norm: Tensor) -> UnreadOutcome:
        """A step that the optimizer's kernel leaves out if the norm is not finite."""
        outcome = UnreadOutcome(norm)
        optimizer: Any = self._optimizer
        optimizer.found_inf = (~outcome.applied).float()
        self._clip_and_step(lr_factor, norm)
        del optimizer.found_inf
        self.discard_gradients()
        return outcome

    def _clip_and_step(self, lr_factor: float, norm: Tensor) -> None:
        state.set_lr(self._optimizer, lr_factor)
        with state.reductions(self._optimizer, self.gradients()):
            if self._max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, self._max_grad_norm, norm)
            self._optimizer.step()

    @property
    def several_passes(self) -> bool:
        """Whether a step may evaluate its batch more than once."""
        return self._point.several_passes

    @property
    def weights(self) -> Weights:
        """Here."""
        return self

    def gradients(self) -> Gradients:
        """Each parameter's gradient."""
        return self.layout.gradients()

    def gradients_changed(self) -> None:
        """Nothing to do: the norm is taken from the gradients themselves."""

    def discard_gradients(self) -> None:
        """Forgets the accumulated gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def masters_are_weights(self) -> bool:
        """The model computes with the masters themselves."""
        return True

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, also where autocast computes in bf16."""
        return torch.float32

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients inside."""
        self._model.eval()
        try:
            with torch.no_grad(), self._point.at_evaluation_weights():
                yield
        finally:
            self._model.train()

    def evaluate(self, inputs: Inputs) -> Tensor:
        """The sum of losses, without DDP's hooks."""
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast):
            loss: Tensor = self.module(**inputs)
        return loss

    def pieces(self) -> Iterator[StatePiece]:
        """Whole parameters and their state."""
        return state.pieces_of(self._optimizer, self.layout)

    def create_state(self) -> None:
        """Creates zero optimizer state."""
        state.create_state(self._optimizer, self.layout)

    def optimizer_metrics(self) -> dict[str, float]:
        """What the optimizer says of its last step."""
        return state.metrics(self._optimizer) | self._point.metrics()

    def shared_state(self) -> dict[str, float]:
        """Optimizer state of no single parameter."""
        return shared_state(self._optimizer)

    def load_shared_state(self, shared: Mapping[str, float]) -> None:
        """Restores it."""
        state.load_shared_state(self._optimizer, shared)
        if self._apart is not None:
            self._apart.load_shared()

    def owned_state(self) -> dict[str, dict[str, Tensor | float]]:
        """State of whole parameters, and of worker groups that train apart."""
        if self._world.rank == 0:
            return state.owned_state(self._optimizer)
        return self._apart.state() if self._apart else {}

    def load_owned_state(self, read: Callable[[str], dict[str, Tensor | float]]) -> None:
        """Restores it."""
        state.load_owned_state(self._optimizer, read)
        if self._apart is not None:
            self._apart.load(read)

    def masters_changed(self) -> None:
        """Nothing to do: the masters are the model's weights."""

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and persistent buffer."""
        if self._world.rank == 0:
            with self._point.at_evaluation_weights():
                for name, parameter in self.module.named_parameters():
                    yield name, parameter.detach().to("cpu", copy=True)
            yield from ((name, buffer.cpu()) for name, buffer in state.persistent_buffers(self.module))

    def close(self) -> None:
        """Nothing to release."""

    def _forward(self, inputs: Inputs) -> Tensor:
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast):
            loss: Tensor = self._model(**inputs)
        return loss

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()
