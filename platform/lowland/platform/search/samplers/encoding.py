"""Parameters as points of the unit cube."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lowland.platform.search.samplers.gaussian_process import Array


class Encoding:
    """A fixed order of dimensions: one per number, on its scale; one per choice of a category.

    Args:
        space: the parameters.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)
        self.sizes = [len(d.choices) if isinstance(d, CategoricalDistribution) else 1 for d in self.space.values()]
        self.dimensions = sum(self.sizes)

    def encode(self, parameters: Sequence[Mapping[str, Any]]) -> Array:
        """Points [n, dimensions]; a parameter that is absent lies in the middle."""
        points = np.full((len(parameters), self.dimensions), 0.5)
        for row, given in enumerate(parameters):
            column = 0
            for (name, distribution), size in zip(self.space.items(), self.sizes, strict=True):
                if name in given:
                    points[row, column : column + size] = _encode(distribution, given[name])
                column += size
        return points

    def decode(self, point: Array) -> dict[str, Any]:
        """The parameters nearest to a point."""
        found, column = {}, 0
        for (name, distribution), size in zip(self.space.items(), self.sizes, strict=True):
            found[name] = _decode(distribution, point[column : column + size])
            column += size
        return found

    def snap(self, points: Array) -> Array:
        """The points of the parameters nearest to given points."""
        return self.encode([self.decode(point) for point in points])

    def random(self, count: int, generator: np.random.Generator) -> Array:
        """Uniform points of the cube."""
        return generator.random((count, self.dimensions))


def _bounds(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    low, high = float(distribution.low), float(distribution.high)
    return (np.log(low), np.log(high)) if distribution.log else (low, high)


def _encode(distribution: BaseDistribution, value: Any) -> Array:
    if isinstance(distribution, CategoricalDistribution):
        return np.array([float(choice == value) for choice in distribution.choices])
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    place = np.log(value) if distribution.log else float(value)
    return np.array([np.clip((place - low) / max(high - low, 1e-12), 0.0, 1.0)])


def _decode(distribution: BaseDistribution, point: Array) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(point.argmax())]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    place = low + float(np.clip(point[0], 0.0, 1.0)) * (high - low)
    value = float(np.exp(place)) if distribution.log else place
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)
