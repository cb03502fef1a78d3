"""Parameters as points of the unit cube."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lowland.platform.search.samplers.gaussian_process import Array

_ABSENT = object()
Conditions = Mapping[str, Sequence[tuple[str, str]]]
"""By parameter, the branches it belongs to, each with the alternative in which it counts."""


class Encoding:
    """A fixed order of dimensions: one per number, on its scale; one per choice of a category.

    A parameter that does not count, given the alternatives that are chosen, lies in the middle of its range, so that
    points that differ only there are the same point.

    Args:
        space: the parameters.
        conditions: of parameters that count in some alternatives only.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], conditions: Conditions | None = None) -> None:
        self.space = dict(space)
        self.columns = dict[str, slice]()
        column = 0
        for name, distribution in self.space.items():
            size = len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 1
            self.columns[name] = slice(column, column + size)
            column += size
        self.dimensions = column
        self._known = dict[tuple[Any, ...], Array]()
        self._conditions = [
            (self.columns[name], [self._column(branch, alternative) for branch, alternative in where])
            for name, where in (conditions or {}).items()
            if where and name in self.columns
        ]

    def encode(self, parameters: Sequence[Mapping[str, Any]]) -> Array:
        """Points [n, dimensions]; a parameter that is absent lies in the middle."""
        return np.array([self._point(given) for given in parameters]).reshape(-1, self.dimensions)

    def _point(self, given: Mapping[str, Any]) -> Array:
        """The same trials are asked for again and again."""
        key = tuple(given.get(name, _ABSENT) for name in self.columns)
        if key not in self._known:
            point = np.full((1, self.dimensions), 0.5)
            for name, columns in self.columns.items():
                if name in given:
                    point[0, columns] = _encode(self.space[name], given[name])
            self._known[key] = self._settle(point)[0]
        return self._known[key]

    def decode(self, point: Array) -> dict[str, Any]:
        """The parameters nearest to a point."""
        return {name: _decode(self.space[name], point[columns]) for name, columns in self.columns.items()}

    def snap(self, points: Array) -> Array:
        """The points of the parameters nearest to given points."""
        snapped = np.empty_like(points)
        for name, columns in self.columns.items():
            snapped[:, columns] = _snap(self.space[name], points[:, columns])
        return self._settle(snapped)

    def random(self, count: int, generator: np.random.Generator) -> Array:
        """Uniform points of the cube."""
        return generator.random((count, self.dimensions))

    def _column(self, branch: str, alternative: str) -> int:
        distribution = self.space[branch]
        assert isinstance(distribution, CategoricalDistribution)
        return int(self.columns[branch].start) + distribution.choices.index(alternative)

    def _settle(self, points: Array) -> Array:
        """Puts what does not count into the middle; `points` is changed."""
        for columns, chosen in self._conditions:
            idle = (points[:, chosen] < 1.0).any(1)
            points[idle, columns] = 0.5
        return points


@dataclass(frozen=True)
class _Scale:
    """Where numbers of a distribution lie."""

    distribution: FloatDistribution | IntDistribution
    low: float
    """Its ends, on its scale."""
    high: float

    def place(self, values: npt.ArrayLike) -> Array:
        """Of values, in [0, 1]."""
        scaled: Array = (_transformed(self.distribution, values) - self.low) / max(self.high - self.low, 1e-12)
        return np.clip(scaled, 0.0, 1.0)

    def values(self, places: Array) -> Array:
        """At places, rounded to what is allowed."""
        d = self.distribution
        values = self.low + np.clip(places, 0.0, 1.0) * (self.high - self.low)
        values = np.exp(values) if d.log else values
        if isinstance(d, IntDistribution) or d.step is not None:
            step = d.step or 1
            values = d.low + np.round((values - d.low) / step) * step
        return np.clip(values, d.low, d.high)


def _transformed(distribution: FloatDistribution | IntDistribution, values: npt.ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    return np.log(array) if distribution.log else array


@lru_cache(maxsize=1024)
def _scale(distribution: BaseDistribution) -> _Scale:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _transformed(distribution, [distribution.low, distribution.high])
    return _Scale(distribution, float(low), float(high))


def _encode(distribution: BaseDistribution, value: Any) -> Array:
    if isinstance(distribution, CategoricalDistribution):
        return np.array([float(choice == value) for choice in distribution.choices])
    return _scale(distribution).place([value])


def _decode(distribution: BaseDistribution, point: Array) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(point.argmax())]
    value = float(_scale(distribution).values(point)[0])
    return round(value) if isinstance(distribution, IntDistribution) else value


def _snap(distribution: BaseDistribution, points: Array) -> Array:
    if isinstance(distribution, CategoricalDistribution):
        chosen: Array = np.eye(points.shape[1])[points.argmax(1)]
        return chosen
    scale = _scale(distribution)
    return scale.place(scale.values(points))
