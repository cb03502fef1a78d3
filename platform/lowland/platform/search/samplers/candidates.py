"""Points that a model-based sampler may propose: at first, at random, and the best by what they are worth."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.stats import qmc

from lowland.platform.search.samplers.beliefs import Beliefs
from lowland.platform.search.samplers.encoding import Encoding
from lowland.platform.search.samplers.gaussian_process import Array

_SPREAD, _LOCAL, _ROUNDS = 1024, 256, 3
_BELIEVED = 4
"""One in so many of the first trials comes from the beliefs: if they are wrong, the others have to show it."""
_ATTEMPTS = 64
"""Points at the head of a ranking, and as many spread over the rest, of which one should be allowed."""


class Candidates:
    """Points of a space as rows of its encoding.

    Args:
        encoding: of the space.
        beliefs: about good values.
        generator: of everything random.
        allowed: whether parameters may be tried.
    """

    def __init__(
        self,
        encoding: Encoding,
        beliefs: Beliefs,
        generator: np.random.Generator,
        allowed: Callable[[Mapping[str, Any]], bool],
    ) -> None:
        self._encoding, self._beliefs, self._generator, self._allowed = encoding, beliefs, generator, allowed
        self._initial_points = qmc.Sobol(encoding.dimensions, rng=generator).random_base2(6)

    def initial(self, number: int) -> Array:
        """The centre of the beliefs, then quasi-random and now and then from the beliefs; the first that is allowed."""
        point = self._initial_points[number % len(self._initial_points)]
        if number == 0:
            point = np.where(self._encoding.unbounded, 0.5, point)
        if self._beliefs and number % _BELIEVED == 0:
            point = self._beliefs.sample(1, self._generator)[0] if number else self._beliefs.centre
        return self.random(point[None])

    def random(self, preferred: Array | None = None, around: Array | None = None) -> Array:
        """A point from anywhere that is allowed, without ends from around points; or a preferred one."""
        points = self._encoding.random(_ATTEMPTS, self._generator, around)
        points = points if preferred is None else np.concatenate([preferred, points])
        first: Array = self._allowed_first(points, 1)[0]
        return first

    def best(self, worth: Callable[[Array], Array], centres: Array) -> Array:
        """The allowed point that is worth most, of random ones and ever closer neighbours of the best and of centres.

        Args:
            worth: [n] of points [n, d].
            centres: [m, d].
        """
        spread = self._encoding.random(_SPREAD, self._generator, centres)
        pool = np.concatenate([spread, self._near(centres, 0.1)])
        if self._beliefs:
            pool = np.concatenate([pool, self._beliefs.sample(_LOCAL, self._generator)])
        for width in np.geomspace(0.1, 0.01, _ROUNDS):
            pool = self._encoding.snap(pool)
            top = self._allowed_first(pool[np.argsort(-worth(pool))], 4)
            pool = np.concatenate([top, self._near(top, width)])
        pool = self._encoding.snap(pool)
        best: Array = self._allowed_first(pool[np.argsort(-worth(pool))], 1)[0]
        return best

    def _allowed_first(self, points: Array, count: int) -> Array:
        """The first so many points that may be tried; if there are none, those that come first."""
        chosen = list[Array]()
        far = points[_ATTEMPTS :: max(1, len(points) // _ATTEMPTS)]
        for point in np.concatenate([points[:_ATTEMPTS], far]):
            if self._allowed(self._encoding.decode(point)):
                chosen.append(point)
            if len(chosen) == count:
                break
        return np.array(chosen) if chosen else points[:count]

    def _near(self, centres: Array, width: float) -> Array:
        rows = centres[self._generator.integers(len(centres), size=_LOCAL)]
        moved = self._generator.random(rows.shape) < np.maximum(0.3, 1.0 / rows.shape[1])
        shifted = rows + moved * self._generator.normal(0.0, width, rows.shape)
        near: Array = np.clip(shifted, self._encoding.least, self._encoding.most)
        return near
