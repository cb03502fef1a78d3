"""The straight line between two networks, and how high the loss rises on it."""

from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["barrier", "interpolated", "require_alike"]


def interpolated(first: Mapping[str, Tensor], second: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """(1 - t) first + t second; what is no float (counters) is the first's.

    Raises:
        ValueError: names or shapes differ.
    """
    require_alike(first, second)
    if t == 0:
        return dict(first)
    if t == 1:
        return dict(second)
    return {
        name: (1 - t) * weight + t * second[name] if weight.is_floating_point() else weight
        for name, weight in first.items()
    }


def require_alike(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Compares names and shapes.

    Raises:
        ValueError: they differ.
    """
    for name in sorted(first.keys() | second.keys()):
        shapes = [tuple(weights[name].shape) if name in weights else None for weights in (first, second)]
        if shapes[0] != shapes[1]:
            here, there = ("nothing" if shape is None else f"shape {shape}" for shape in shapes)
            raise ValueError(f"{name} has {here} in one network and {there} in the other")


def barrier(ts: Sequence[float], losses: Sequence[float]) -> float:
    """The most by which the loss lies above the straight line between its ends (Entezari et al., arXiv 2110.06296).

    0 means linearly connected; the ends themselves are compared too, so it is never below 0.

    Args:
        ts: ascending, from 0 to 1.
        losses: at each.
    """
    line = ((1 - t) * losses[0] + t * losses[-1] for t in ts)
    return max(loss - on_line for loss, on_line in zip(losses, line, strict=True))
