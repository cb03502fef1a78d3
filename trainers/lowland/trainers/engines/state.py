"""Optimizer state as pieces of parameters, for any optimizer over any layout."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.optim import Layout, LayoutAware, Segment
from lowland.trainers.engines.engine import StatePiece


@runtime_checkable
class SharesState(Protocol):
    """An optimizer with state that belongs to no single parameter."""

    def shared_state(self) -> dict[str, float]:
        """That state by name, the same on every rank."""

    def load_shared_state(self, state: Mapping[str, float]) -> None:
        """Restores it."""


def pieces_of(optimizer: Optimizer, layout: Layout) -> Iterator[StatePiece]:
    """Every segment's weight and optimizer state, as views of the stepped tensors."""
    for fragment in layout.fragments:
        state = optimizer.state.get(fragment.tensor, {})
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        sliced = {
            key: value for key, value in tensors.items() if value.shape == fragment.tensor.shape and key != "step"
        }
        scalars = {key: value for key, value in tensors.items() if value.dim() == 0 and key not in sliced}
        unknown = state.keys() - sliced.keys() - scalars.keys()
        if unknown:
            raise TypeError(
                f"{type(optimizer).__name__} keeps state that is neither like its tensor nor one number: {unknown}"
            )
        for segment in fragment.segments:
            views = {key: segment.of(value) for key, value in sliced.items()}
            parameter = layout.parameters[segment.parameter]
            weight = segment.of(fragment.tensor.data)
            yield StatePiece(parameter.name, parameter.numel, segment, {"weight": weight, **views}, scalars)


def create_state(optimizer: Optimizer, layout: Layout) -> None:
    """Takes a step with zero gradients at rate zero: the optimizer creates its state and changes no weight."""
    kept = [(group["lr"], group["params"]) for group in optimizer.param_groups]
    # With offload DeepSpeed fills these very gradients again.
    gradients = [fragment.tensor.grad for fragment in layout.fragments]
    for index, group in enumerate(optimizer.param_groups):
        group["lr"] = 0.0
        group["params"] = [fragment.tensor for fragment in layout.fragments if fragment.group == index]
    for fragment in layout.fragments:
        fragment.tensor.grad = torch.zeros_like(fragment.tensor)
    with reductions(optimizer, own_gradients(layout)):
        optimizer.step()
    for fragment, gradient in zip(layout.fragments, gradients, strict=True):
        fragment.tensor.grad = gradient
    for group, (rate, params) in zip(optimizer.param_groups, kept, strict=True):
        group["lr"], group["params"] = rate, params


Gradients = Iterator[tuple[Segment, Tensor, Tensor]]
"""For each segment of this rank: the segment, its fragment's tensor, its gradient."""


def own_gradients(layout: Layout) -> Gradients:
    """The gradients that the stepped tensors themselves hold."""
    for fragment in layout.fragments:
        if fragment.tensor.grad is not None:
            for segment in fragment.segments:
                yield segment, fragment.tensor, segment.of(fragment.tensor.grad)


@contextmanager
def reductions(optimizer: Optimizer, gradients: Gradients) -> Iterator[None]:
    """An optimizer step with the sums taken first, for optimizers that need sums."""
    if not isinstance(optimizer, LayoutAware):
        yield
        return
    optimizer.prepare(gradients)
    try:
        yield
    finally:
        optimizer.finish()


def shared_state(optimizer: Optimizer) -> dict[str, float]:
    """State that belongs to no single parameter; empty for most optimizers."""
    return optimizer.shared_state() if isinstance(optimizer, SharesState) else {}


def load_shared_state(optimizer: Optimizer, state: Mapping[str, float]) -> None:
    """Restores `shared_state`."""
    if isinstance(optimizer, SharesState):
        optimizer.load_shared_state(state)


def scaled(loss: Tensor, factor: float) -> Tensor:
    """The loss times a factor; if it is not finite, nor are its gradients.

    A loss can be inf with finite gradients.  Spoiling them makes the gradient norm, which all ranks
    know, say so: no further message between ranks, and no waiting for the loss.
    """
    return loss * (factor + 0 * loss.detach())


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Gives every group the rate; set before each step, so that a resume needs no schedule state."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to a module's state, on the CPU."""
    persistent = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in persistent:
            yield name, buffer.detach().cpu()
