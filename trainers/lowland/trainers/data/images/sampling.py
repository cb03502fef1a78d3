"""How often each training example comes, where that is not once an epoch."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lowland.trainers.data.images.chance import uniforms
from lowland.trainers.data.order import Indices, Order

_OFFSETS = 2.0**20
"""Places at which a draw may begin: coarse enough that they are exact beside any number of rows."""


@dataclass(frozen=True)
class Sampling:
    """How often examples come, from a place in the stream of examples on."""

    weights: npt.NDArray[np.float64]
    """[rows], above 0: how often each comes in an epoch, on average; their mean is 1."""
    start: int
    """The first example that it holds for."""


class SampledOrder(Order):
    """An `Order` in which rows come as often as a sampling says, from a place in the stream on.

    An epoch is a systematic sample of as many rows, shuffled as the order shuffles them: each row comes as often as its
    weight says, rounded up or down, and on average over epochs exactly so.  It depends on weights, seed and epoch
    alone; with all weights 1 it is the order itself.  Costs 16 bytes for each row.

    Args:
        rows: of the training set.
        seed: of the training.
        sampling: None is each row once an epoch.
    """

    def __init__(self, rows: int, seed: int, sampling: Sampling | None) -> None:
        super().__init__(rows, seed)
        self._sampling = sampling
        self._drawn = lru_cache(maxsize=2)(self._draw)

    def __reduce__(self) -> tuple[type["SampledOrder"], tuple[int, int, Sampling | None]]:
        """It travels to other processes without what it remembers."""
        return type(self), (self.rows, self.seed, self._sampling)

    def examples(self, start: int, count: int) -> Indices:
        """Row indices [count] of the examples start, start + 1, …"""
        return self.draws(start, count) % self.rows

    def draws(self, start: int, count: int) -> Indices:
        """The same rows, each plus `rows` for every time that it comes earlier in the epoch.

        By these numbers the draws of one row are told apart: each has random numbers of its own.
        """
        found = super().examples(start, count)
        if self._sampling is None:
            return found
        examples = np.arange(start, start + count, dtype=np.int64)
        epochs = examples // self.rows
        for epoch in range(start // self.rows, (start + count - 1) // self.rows + 1):
            here = (epochs == epoch) & (examples >= self._sampling.start)
            if here.any():
                found[here] = self._drawn(epoch)[found[here]]
        return found

    def _draw(self, epoch: int) -> Indices:
        """The draws of an epoch, in ascending order of the rows."""
        assert self._sampling is not None
        none = np.zeros(1, dtype=np.int64)
        (chance,) = uniforms("sampling", seed=self.seed, epochs=none + epoch, images=none, count=1)[0]
        return systematic_draws(self._sampling.weights, np.floor(chance * _OFFSETS) / _OFFSETS)


def systematic_draws(weights: npt.NDArray[np.float64], offset: float) -> Indices:
    """As many draws as there are weights, in ascending order of the rows.

    Args:
        weights: [n], above 0, of mean 1.
        offset: where the sample begins, in [0, 1).

    Returns:
        int64 [n]: rows, each plus n for every earlier draw of it.
    """
    count = len(weights)
    places = np.arange(count)
    # Rounding may leave the last end below the last point.
    rows = np.minimum(np.searchsorted(np.cumsum(weights), places + offset, side="right"), count - 1)
    earlier = places - np.searchsorted(rows, rows)
    draws: Indices = rows + count * earlier
    return draws
