"""What users believe of good values, as a density over the unit cube (piBO, Hvarfner et al., arXiv 2204.11051)."""

import math
from collections.abc import Mapping

import numpy as np
from optuna.distributions import CategoricalDistribution
from scipy.stats import spearmanr

from lowland.platform.search.samplers.encoding import Encoding
from lowland.platform.search.samplers.gaussian_process import Array
from lowland.search_spaces import Prior

_DOUBT = 0.25
"""Share of a uniform density in each belief: a wrong one can cost only so much."""

_ENOUGH = 5


class Beliefs:
    """Independent beliefs about some parameters.

    A number is believed to lie about the centre, as a normal distribution of the prior's `deviation` cut to the
    range; a category to be the centre with probability `confidence`.

    Args:
        encoding: of the space.
        priors: by parameter; names that the space does not have are left out.
    """

    def __init__(self, encoding: Encoding, priors: Mapping[str, Prior]) -> None:
        self._encoding = encoding
        self._priors = {name: prior for name, prior in priors.items() if name in encoding.columns}
        centres = encoding.encode([{name: prior.centre for name, prior in self._priors.items()}])
        self.centre: Array = centres[0]

    def __bool__(self) -> bool:
        return bool(self._priors)

    def log_density(self, points: Array) -> Array:
        """Up to a constant: 0 at the centre, and per parameter never below the logarithm of the doubt."""
        total = np.zeros(len(points))
        for name, prior in self._priors.items():
            columns = self._encoding.columns[name]
            distance = points[:, columns] - self.centre[columns]
            if isinstance(self._encoding.space[name], CategoricalDistribution):
                others = max(distance.shape[1] - 1, 1)
                away = np.abs(distance).max(1) > 0.5
                relative = np.where(away, (1 - prior.confidence) / others / prior.confidence, 1.0)
            else:
                relative = np.exp(-0.5 * (distance[:, 0] / prior.deviation) ** 2)
            total += np.log((1 - _DOUBT) * relative + _DOUBT)
        return total

    def trust(self, points: Array, values: Array) -> float:
        """How far values, lower better, bear the belief out.

        Their rank correlation with it, less the standard error that one of so many unrelated values has, and never
        below 0: what may be chance is not believed.

        Args:
            points: what was tried, [n, d].
            values: [n]; of fewer than five nothing is concluded, and the trust is 1.
        """
        density = self.log_density(points)
        if len(values) < _ENOUGH or np.ptp(density) == 0 or np.ptp(values) == 0:
            return 1.0
        return max(0.0, float(spearmanr(density, -values).statistic) - 1 / math.sqrt(len(values)))

    def sample(self, count: int, generator: np.random.Generator) -> Array:
        """Points drawn from it; uniform where nothing is believed."""
        points = self._encoding.random(count, generator)
        for name, prior in self._priors.items():
            columns = self._encoding.columns[name]
            if isinstance(self._encoding.space[name], CategoricalDistribution):
                points[generator.random(count) < prior.confidence, columns] = self.centre[columns]
            else:
                drawn = generator.normal(self.centre[columns], prior.deviation, (count, 1))
                points[:, columns] = np.clip(drawn, 0.0, 1.0)
        return points
