"""Batches for two networks on disjoint halves of the images (CrossSplit): further views, and whom to blend with."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from lowland.trainers.data.images.chance import Uniforms
from lowland.trainers.data.order import Indices

VIEWS = 2
"""Lightly augmented versions of an image of which predictions are averaged."""
_PARTNERS = 0xB1E4D


@dataclass(frozen=True)
class Halves:
    """How a training on two halves gets its batches."""

    seeds: tuple[int, int]
    """Of the order in which each half is passed over."""
    views_from: int
    """The example of the stream from which on there are further views."""
    mixup: float
    """alpha of Beta(alpha, alpha); 0 blends nothing."""
    across: bool
    """Whether images are blended with those of the other half too."""


def partners(seed: int, first: int, count: int, *, across: bool) -> Indices:
    """The place of each image's partner, int64 [count]: a permutation that depends on seed and first example alone.

    Args:
        seed: of the training.
        first: place of the micro-batch in the stream of examples; even.
        count: images of the micro-batch; even.
        across: permute all of them; otherwise those at even and those at odd places by themselves.
    """
    draw = np.random.default_rng([seed, first, _PARTNERS])
    if across:
        return draw.permutation(count)
    places = np.arange(count).reshape(-1, 2)
    for parity in (0, 1):
        places[:, parity] = draw.permutation(places[:, parity])
    return places.ravel()


def own_parts(numbers: Uniforms, alpha: float) -> npt.NDArray[np.float64]:
    """max(lambda, 1 - lambda) with lambda ~ Beta(alpha, alpha): what an image keeps of itself, in [0.5, 1].

    Args:
        numbers: [B], in [0, 1).
        alpha: > 0.
    """
    parts: npt.NDArray[np.float64] = betaincinv(alpha, alpha, numbers)
    return np.maximum(parts, 1 - parts)
