"""Parameters as points of the unit cube."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lowland.platform.search.samplers.gaussian_process import Array

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
        self._conditions = [
            (self.columns[name], [self._column(branch, alternative) for branch, alternative in where])
            for name, where in (conditions or {}).items()
            if where and name in self.columns
        ]

    def encode(self, parameters: Sequence[Mapping[str, Any]]) -> Array:
        """Points [n, dimensions]; a parameter that is absent lies in the middle."""
        points = np.full((len(parameters), self.dimensions), 0.5)
        for row, given in enumerate(parameters):
            for name, columns in self.columns.items():
                if name in given:
                    points[row, columns] = _encode(self.space[name], given[name])
        return self._settle(points)

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

    def place(self, values: npt.ArrayLike) -> Array:
        """Of values, in [0, 1]."""
        low, high = self._bounds()
        scaled: Array = (self._transformed(values) - low) / max(high - low, 1e-12)
        return np.clip(scaled, 0.0, 1.0)

    def values(self, places: Array) -> Array:
        """At places, rounded to what is allowed."""
        low, high = self._bounds()
        d = self.distribution
        values = low + np.clip(places, 0.0, 1.0) * (high - low)
        values = np.exp(values) if d.log else values
        if isinstance(d, IntDistribution) or d.step is not None:
            step = d.step or 1
            values = d.low + np.round((values - d.low) / step) * step
        return np.clip(values, d.low, d.high)

    def _bounds(self) -> tuple[float, float]:
        low, high = self._transformed([self.distribution.low, self.distribution.high])
        return float(low), float(high)

    def _transformed(self, values: npt.ArrayLike) -> Array:
        array = np.asarray(values, dtype=np.float64)
        return np.log(array) if self.distribution.log else array


def _scale(distribution: BaseDistribution) -> _Scale:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return _Scale(distribution)


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
