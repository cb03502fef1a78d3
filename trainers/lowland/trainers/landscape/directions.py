"""Random directions in which different networks can be compared (Li et al., arXiv 1712.09913).

A filter of a weight is what makes one output: a row of a matrix, the kernel of a channel.  Each filter of a random
direction gets the norm of the weight's own filter, so that a step of 1 means the same for weights of any scale; what
has one dimension, biases and normalisation, does not move.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["filter_normalised", "moved"]

Weights = Mapping[str, Tensor]


def filter_normalised(weights: Weights, seed: int) -> dict[str, Tensor]:
    """A random direction of weights, drawn on the CPU in the order of the names given.

    Args:
        weights: parameters and buffers by name; buffers have one dimension or are no floats, and do not move.
        seed: of the draw.

    Returns:
        A tensor for each that moves, each filter as long as the weight's.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _like_filters(torch.randn(weight.shape, generator=generator), weight.float())
        for name, weight in weights.items()
        if weight.dim() >= 2 and weight.is_floating_point()
    }


def _like_filters(direction: Tensor, weight: Tensor) -> Tensor:
    lengths, norms = (x.flatten(1).norm(dim=1) for x in (direction, weight))
    scales: Tensor = norms / (lengths + 1e-10)
    return direction * scales.view(-1, *[1] * (weight.dim() - 1))


def moved(weights: Weights, directions: Sequence[Weights], distances: Sequence[float]) -> dict[str, Tensor]:
    """Weights + the sum of distance * direction; distances of 0 give the same tensors."""
    result = dict(weights)
    for direction, distance in zip(directions, distances, strict=True):
        if distance:
            result |= {name: result[name] + distance * way for name, way in direction.items()}
    return result
