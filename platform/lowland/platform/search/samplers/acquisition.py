"""What a proposal is worth, in logarithms: factors add, and rankings survive where values underflow."""

import numpy as np
from scipy.special import log_ndtr
from scipy.stats import norm

from lowland.platform.search.samplers.gaussian_process import Array, GaussianProcess


def log_improvement(best: Array | float, mean: Array, deviation: Array) -> Array:
    """log E[max(best - f, 0)] for f ~ N(mean, deviation^2)."""
    z = (best - mean) / deviation
    direct = np.log(np.maximum(norm.pdf(z) + z * norm.cdf(z), 1e-300))
    tail = norm.logpdf(z) - 2 * np.log(np.maximum(-z, 1.0))
    result: Array = np.log(deviation) + np.where(z > -6, direct, tail)
    return result


class Feasibility:
    """How likely parameters are to be usable: a Gaussian process on 1 for usable and -1 for unusable.

    Args:
        points: parameters whose fate is known, [n, d].
        usable: [n]
    """

    def __init__(self, points: Array, usable: Array) -> None:
        self._mean = float(np.mean(2 * usable - 1))
        self._process = GaussianProcess.fit(points, 2 * usable - 1 - self._mean, iterations=20)

    def log_probability(self, points: Array) -> Array:
        """The logarithm of the probability of being usable."""
        mean, deviation = self._process.predict(points)
        result: Array = log_ndtr((self._mean + mean) / np.hypot(deviation, 0.15))
        return result


class Cost:
    """The cost of a whole training: a Gaussian process on the logarithm of what a unit of resource cost.

    Args:
        points: parameters of trials with a known cost, [n, d].
        rates: cost per unit of resource, [n]
    """

    def __init__(self, points: Array, rates: Array) -> None:
        logs = np.log(rates)
        self._mean, self._spread = float(logs.mean()), max(float(logs.std()), 1e-6)
        self._process = GaussianProcess.fit(points, (logs - self._mean) / self._spread, iterations=20)

    def log_rate(self, points: Array) -> Array:
        """The logarithm of the expected cost of a unit."""
        result: Array = self._mean + self._spread * self._process.predict(points)[0]
        return result
