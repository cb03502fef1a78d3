"""What seeds and trials say: means with intervals, paired tests, and the best of some trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from statistics import fmean, stdev

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95
EXACT = 16
"""Pairs up to which all sign changes are counted; of more pairs so many random ones as these have."""


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval."""

    mean: float
    half: float | None
    """None of a single value."""

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if self.half is None else f"{self.mean:.4g} ± {self.half:.2g}"


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean with its interval by Student's t.

    Args:
        values: at least one.
        confidence: of the interval, in (0, 1).
    """
    if len(values) < 2:
        return Interval(fmean(values), None)
    quantile = float(student.ppf((1 + confidence) / 2, len(values) - 1))
    return Interval(fmean(values), quantile * stdev(values) / sqrt(len(values)))


def differences(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Values minus the base's, for the seeds that both have, by seed."""
    return [values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())]


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> Interval:
    """The mean difference to the base over the seeds that both have, with its interval."""
    return interval(differences(values, base))


def paired_t(found: Sequence[float]) -> float | None:
    """Two-sided p-value of Student's t that the mean difference is zero; None of fewer than two.

    Exact if differences are normal.  Equal differences have no spread: p is 1 if they are zero, else 0.

    Args:
        found: the differences.
    """
    if len(found) < 2:
        return None
    spread = stdev(found) / sqrt(len(found))
    if spread == 0:
        return 1.0 if fmean(found) == 0 else 0.0
    return float(2 * student.sf(abs(fmean(found)) / spread, len(found) - 1))


def sign_flips(found: Sequence[float]) -> float:
    """Two-sided p-value of the permutation test that differences are as likely to have the other sign.

    The share of all 2^n choices of signs whose sum is at least as far from zero as the sum that was found; exact
    whatever the distribution, and never below 2 / 2^n.  Of more than 16 pairs, 2^16 random choices are counted, with
    the one that was found: then never below 1 / (2^16 + 1).

    Args:
        found: the differences, at least one.
    """
    sums = _all_sums(found) if len(found) <= EXACT else _random_sums(found)
    # Sums of the same numbers in another order differ by rounding.
    least = abs(sum(found)) - 1e-9 * sum(map(abs, found))
    return float(np.mean(np.abs(sums) >= least))


def _all_sums(found: Sequence[float]) -> np.ndarray:
    sums = np.zeros(1)
    for difference in found:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums


def _random_sums(found: Sequence[float]) -> np.ndarray:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(2**EXACT, len(found)))
    return np.append(signs @ np.asarray(found), sum(found))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that the chance of any false finding stays below the level (Holm, 1979).

    The k-th smallest of m is multiplied by m - k + 1, none may be below a smaller one's, and none above 1.

    Args:
        p_values: in any order, in which the adjusted ones are returned.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    scaled = [min(1.0, (len(order) - rank) * p_values[index]) for rank, index in enumerate(order)]
    adjusted = dict(zip(order, accumulate(scaled, max), strict=True))
    return [adjusted[index] for index in range(len(p_values))]


def expected_best(values: Sequence[float]) -> list[float]:
    """The lowest of the first n values, n = 1 ... N, on average over all orderings of the values.

    The i-th lowest of N is the lowest of n drawn without replacement in C(N - i, n - 1) of C(N, n) cases.  It is the
    expected validation performance of Dodge et al. (arXiv 1909.03004), which draws with replacement and so is
    pessimistic for n near N (Tang et al., arXiv 2004.13705); the last value here is the best.  Cost: N^2.

    Args:
        values: lower is better; infinite for a trial that gave no number.

    Returns:
        By n - 1; infinite where some ordering has found nothing in its first n.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    return [_lowest(ordered, drawn) for drawn in range(1, len(ordered) + 1)]


def _lowest(ordered: np.ndarray, drawn: int) -> float:
    count = len(ordered)
    possible = count - drawn + 1  # the lowest of `drawn` is one of these
    rank = np.arange(1, possible)
    # C(N - i - 1, n - 1) / C(N - i, n - 1), from C(N - 1, n - 1) / C(N, n) on.
    weights = np.cumprod(np.append(drawn / count, (possible - rank) / (count - rank)))
    return float(weights @ ordered[:possible])
