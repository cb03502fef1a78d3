"""An optimizer that is made of others, and what to find in it."""

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.layout import Fragment

__all__ = ["evaluation_weights", "layers"]


def layers(optimizer: Optimizer) -> Iterator[Optimizer]:
    """An optimizer and all that it is made of, the outermost first; each has a `state` of its own."""
    yield optimizer
    for part in getattr(optimizer, "parts", ()):
        yield from layers(part)


def evaluation_weights(optimizer: Optimizer) -> Callable[[Fragment], Tensor] | None:
    """What gives a fragment's weights to evaluate and export at; None where those are the masters."""
    return next((find for layer in layers(optimizer) if (find := getattr(layer, "evaluation_weights", None))), None)
