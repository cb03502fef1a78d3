"""Optimizer state as pieces of parameters, for any optimizer over any layout."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim import Optimizer

from lowland import optim
from lowland.optim import Fragment, Gradients, Layout, LayoutOptimizer, layers
from lowland.trainers.engines.engine import StatePiece

GROUP = "group "
"""What the names of state begin with that belongs to one of several worker groups (`engines/groups.py`)."""


def pieces_of(optimizer: Optimizer, layout: Layout) -> Iterator[StatePiece]:
    """Every segment's weight and optimizer state, as views of the stepped tensors."""
    for fragment in layout.fragments:
        tensors, scalars = _state_of(optimizer, fragment)
        for segment in fragment.segments:
            views = {key: segment.of(value) for key, value in tensors.items()}
            parameter = layout.parameters[segment.parameter]
            weight = segment.of(fragment.tensor.data)
            yield StatePiece(parameter.name, parameter.numel, segment, {"weight": weight, **views}, scalars)


def _state_of(optimizer: Optimizer, fragment: Fragment) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A fragment's states that are shaped like it, and those that are one number, of all layers of an optimizer."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Tensor] = {}
    for layer in layers(optimizer):
        for key, value in layer.state.get(fragment.tensor, {}).items():
            if isinstance(value, Tensor) and value.shape == fragment.tensor.shape and key != "step":
                tensors[key] = value
            elif isinstance(value, Tensor) and value.dim() == 0:
                scalars[key] = value
            else:
                raise TypeError(
                    f"{type(layer).__name__} keeps state that is neither like its tensor nor one number: {key}"
                )
    return tensors, scalars


def create_state(optimizer: Optimizer, layout: Layout) -> None:
    """Makes the optimizer create its (zero) state and changes no weight."""
    optim.create_state(optimizer, layout)


@contextmanager
def reductions(optimizer: Optimizer, gradients: Gradients) -> Iterator[None]:
    """An optimizer step with the sums taken first, for optimizers that need sums."""
    if not isinstance(optimizer, LayoutOptimizer):
        yield
        return
    optimizer.prepare(gradients)
    try:
        yield
    finally:
        optimizer.finish()


@contextmanager
def dormant(optimizer: Optimizer) -> Iterator[None]:
    """No step of the optimizer does anything inside: DeepSpeed's initialize takes one, with zero gradients."""
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del optimizer.step
        for layer in layers(optimizer):
            layer.state.clear()


def load_shared_state(optimizer: Optimizer, state: Mapping[str, float]) -> None:
    """Restores `shared_state`."""
    if isinstance(optimizer, LayoutOptimizer):
        optimizer.load_shared_state(state)


def metrics(optimizer: Optimizer) -> dict[str, float]:
    """What all layers of an optimizer say of the last step; parts beside each other are told apart by their index."""
    found = optimizer.metrics() if isinstance(optimizer, LayoutOptimizer) else {}
    parts = getattr(optimizer, "parts", ())
    for index, part in enumerate(parts):
        prefix = f"{index}/" if len(parts) > 1 else ""
        found |= {prefix + name: value for name, value in metrics(part).items()}
    return found


def owned_state(optimizer: Optimizer) -> dict[str, dict[str, Tensor | float]]:
    """State of whole parameters that this rank keeps, of all layers of an optimizer."""
    found: dict[str, dict[str, Tensor | float]] = {}
    for layer in layers(optimizer):
        if isinstance(layer, LayoutOptimizer):
            for name, values in layer.owned_state().items():
                found.setdefault(name, {}).update(values)
    return found


def load_owned_state(optimizer: Optimizer, read: Callable[[str], dict[str, Tensor | float]]) -> None:
    """Restores `owned_state` from whatever ranks kept it."""

    def common(name: str) -> dict[str, Tensor | float]:
        return {key: value for key, value in read(name).items() if not key.startswith(GROUP)}

    for layer in layers(optimizer):
        if isinstance(layer, LayoutOptimizer):
            layer.load_owned_state(common)


def scaled(loss: Tensor, factor: float) -> Tensor:
    """The loss times a factor; if it is not finite, nor are its gradients.

    A loss can be inf with finite gradients.  Spoiling them makes the gradient norm, which all ranks
    know, say so: no further message between ranks, and no waiting for the loss.
    """
    return loss * (factor + 0 * loss.detach())


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Gives every group its own rate times the schedule's factor; before each step, so that a resume needs no state."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to a module's state, themselves."""
    persistent = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in persistent:
            yield name, buffer.detach()
