"""Every worker holds everything: plain torch in one process, DDP in several."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowland.optim import Layout, LayoutAware
from lowland.trainers.engines import state
from lowland.trainers.engines.engine import Inputs, StatePiece, StepOutcome
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
        self._layout = layout
        self._world = world
        self._max_grad_norm = max_grad_norm or math.inf
        self._autocast = autocast
        self._model: nn.Module = module
        if isinstance(optimizer, LayoutAware):
            optimizer.attach(layout)
        if world.size > 1:
            self._model = DistributedDataParallel(module, gradient_as_bucket_view=True)

    def accumulate(self, inputs: Inputs, *, scale: float, last: bool) -> Tensor:
        """Forward and backward; DDP, which averages, reduces with the last micro-batch."""
        with self._synchronised(last):
            loss = self._forward(inputs)
            state.scaled(loss, scale * self._world.size).backward()
        return loss.detach()

    def step(self, lr: float) -> StepOutcome:
        """Clips by the global norm and steps; a norm that is not finite discards the gradients."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        grad_norm = float(norm)
        applied = math.isfinite(grad_norm)
        if applied:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), self._max_grad_norm, norm)
            state.set_lr(self._optimizer, lr)
            with state.reductions(self._optimizer, state.own_gradients(self._layout)):
                self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepOutcome(applied, grad_norm)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients inside."""
        self._model.eval()
        try:
            with torch.no_grad():
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
        return state.pieces_of(self._optimizer, self._layout)

    def create_state(self) -> None:
        """Creates zero optimizer state."""
        state.create_state(self._optimizer, self._layout)

    def shared_state(self) -> dict[str, float]:
        """Optimizer state of no single parameter."""
        return state.shared_state(self._optimizer)

    def load_shared_state(self, shared: Mapping[str, float]) -> None:
        """Restores it."""
        state.load_shared_state(self._optimizer, shared)

    def masters_changed(self) -> None:
        """Nothing to do: the masters are the model's weights."""

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and persistent buffer."""
        if self._world.rank == 0:
            for name, parameter in self.module.named_parameters():
                yield name, parameter.detach().cpu()
            yield from state.persistent_buffers(self.module)

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
