"""Parameters as points of the unit cube, out of which those without ends may lead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lowland.platform.search.samplers.gaussian_process import Array
from lowland.search_spaces import Unbounded

_ABSENT = object()
Conditions = Mapping[str, Sequence[tuple[str, str]]]
"""By parameter, the branches it belongs to, each with the alternative in which it counts."""


class Encoding:
    """A fixed order of dimensions: one per number, on its scale; one per choice of a category.

    A parameter that does not count, given the alternatives that are chosen, lies in the middle of its range, so that
    points that differ only there are the same point.  The logarithm of a number without ends is measured from its
    centre, 0.5, in units of twice that of its factor: where a search sets out it lies in [0, 1].

    Args:
        space: the parameters.
        conditions: of parameters that count in some alternatives only.
        unbounded: those without ends.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        conditions: Conditions | None = None,
        unbounded: Mapping[str, Unbounded] | None = None,
    ) -> None:
        self.space = dict(space)
        self.columns = dict[str, slice]()
        self._scales = {
            name: _unbounded_scale(d, unbounded[name]) if unbounded and name in unbounded else _scale(d)
            for name, d in self.space.items()
            if isinstance(d, FloatDistribution | IntDistribution)
        }
        column = 0
        for name, distribution in self.space.items():
            size = len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 1
            self.columns[name] = slice(column, column + size)
            column += size
        self.dimensions = column
        self.least, self.most = np.zeros(column), np.ones(column)
        for name, scale in self._scales.items():
            self.least[self.columns[name]], self.most[self.columns[name]] = scale.least, scale.most
        self.unbounded: npt.NDArray[np.bool_] = np.zeros(column, bool)
        for name in unbounded or {}:
            self.unbounded[self.columns[name]] = True
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
                    point[0, columns] = self._encode(name, given[name])
            self._known[key] = self._settle(point)[0]
        return self._known[key]

    def decode(self, point: Array) -> dict[str, Any]:
        """The parameters nearest to a point."""
        return {name: self._decode(name, point[columns]) for name, columns in self.columns.items()}

    def snap(self, points: Array) -> Array:
        """The points of the parameters nearest to given points."""
        snapped = np.empty_like(points)
        for name, columns in self.columns.items():
            snapped[:, columns] = self._snap(name, points[:, columns])
        return self._settle(snapped)

    def random(self, count: int, generator: np.random.Generator, around: Array | None = None) -> Array:
        """Uniform points of the cube; where there are no ends, of one about a point of `around`, [n, dimensions]."""
        points = generator.random((count, self.dimensions))
        if around is not None and len(around) and self.unbounded.any():
            rows = around[generator.integers(len(around), size=count)]
            points[:, self.unbounded] += rows[:, self.unbounded] - 0.5
        return points

    def _encode(self, name: str, value: Any) -> Array:
        if (scale := self._scales.get(name)) is not None:
            return scale.place([value])
        return np.array([float(choice == value) for choice in self._choices(name)])

    def _decode(self, name: str, point: Array) -> Any:
        if (scale := self._scales.get(name)) is None:
            return self._choices(name)[int(point.argmax())]
        value = float(scale.values(point)[0])
        return round(value) if isinstance(scale.distribution, IntDistribution) else value

    def _snap(self, name: str, points: Array) -> Array:
        if (scale := self._scales.get(name)) is not None:
            return scale.place(scale.values(points))
        chosen: Array = np.eye(points.shape[1])[points.argmax(1)]
        return chosen

    def _choices(self, name: str) -> Sequence[Any]:
        distribution = self.space[name]
        assert isinstance(distribution, CategoricalDistribution)
        return distribution.choices

    def _column(self, branch: str, alternative: str) -> int:
        return int(self.columns[branch].start) + self._choices(branch).index(alternative)

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
    """What lies at 0 and at 1, on its scale: its ends, if it has any."""
    high: float
    step: float | None
    """Between values; None if there are any between two."""
    least: float = 0.0
    """Where its values end."""
    most: float = 1.0

    def place(self, values: npt.ArrayLike) -> Array:
        """Of values."""
        scaled: Array = (_transformed(self.distribution, values) - self.low) / max(self.high - self.low, 1e-12)
        return np.clip(scaled, self.least, self.most)

    def values(self, places: Array) -> Array:
        """At places, rounded to what is allowed."""
        d = self.distribution
        values = self.low + np.clip(places, self.least, self.most) * (self.high - self.low)
        values = np.exp(values) if d.log else values
        if self.step is not None:
            values = d.low + np.round((values - d.low) / self.step) * self.step
        return np.clip(values, d.low, d.high)


def _transformed(distribution: FloatDistribution | IntDistribution, values: npt.ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    return np.log(array) if distribution.log else array


@lru_cache(maxsize=1024)
def _scale(distribution: FloatDistribution | IntDistribution) -> _Scale:
    low, high = _transformed(distribution, [distribution.low, distribution.high])
    return _Scale(distribution, float(low), float(high), distribution.step)


def _unbounded_scale(distribution: FloatDistribution | IntDistribution, parameter: Unbounded) -> _Scale:
    middle, half = np.log(parameter.centre), np.log(parameter.factor)
    least, most = (np.log([distribution.low, distribution.high]) - middle) / (2 * half) + 0.5
    return _Scale(distribution, middle - half, middle + half, parameter.multiple, float(least), float(most))
