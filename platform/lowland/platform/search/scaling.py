"""How parameters grow with the cost of a training along the front of quality and cost."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from lowland.platform.search.results import StudyResult, TrialResult
from lowland.platform.search.samplers.pareto import front, scaling

FEWEST = 3
"""Trials on the front below which nothing is said."""


@dataclass(frozen=True)
class Growth:
    """A parameter along the front."""

    parameter: str
    slope: float
    """Exponent of the cost if it is logarithmic; else what it grows by when the cost doubles."""
    logarithmic: bool

    def __str__(self) -> str:
        if self.logarithmic:
            return f"{self.parameter} grows as cost^{self.slope:.2f}"
        return f"{self.parameter} grows by {self.slope:+.3g} when the cost doubles"


def growths(result: StudyResult) -> tuple[list[Growth], int]:
    """The numbers among the parameters, fitted along the front of whole trainings that keep all bounds.

    The fit is by least squares in the logarithm of the cost (the idea of CARBS, Fetterman et al., arXiv 2306.08055).

    Returns:
        None of them while the front has fewer than three trials; and how many trials it has.
    """
    trials = [t for t in result.ranked if t.reached == result.full and t.cost > 0 and not t.broken]
    names = [name for name in result.parameters if all(_is_number(t.distributions.get(name)) for t in trials)]
    if not trials or not names:
        return [], 0
    costs = np.log([trial.cost for trial in trials])
    values = np.array([result.sign * (trial.value or 0.0) for trial in trials])
    count = len(front(costs, values))
    if count < FEWEST:
        return [], count
    logarithmic = {name: trials[0].distributions[name].log for name in names}  # type: ignore[attr-defined]
    points = np.array([[_place(trial, name, logarithmic[name]) for name in names] for trial in trials])
    slopes, _ = scaling(costs, values, points)
    found = [
        Growth(name, float(slope) * (1.0 if logarithmic[name] else math.log(2)), logarithmic[name])
        for name, slope in zip(names, slopes, strict=True)
    ]
    return found, count


def growth_lines(result: StudyResult) -> Iterator[str]:
    """For people, of searches for the front of quality and cost."""
    if result.setting is None or result.setting.sampler != "pareto":
        return
    found, count = growths(result)
    if not found:
        yield f"told from {FEWEST} whole trainings on the front on; it has {count}"
    yield from map(str, found)


def _is_number(distribution: BaseDistribution | None) -> bool:
    return isinstance(distribution, FloatDistribution | IntDistribution)


def _place(trial: TrialResult, name: str, logarithmic: bool) -> float:
    value = float(trial.parameters[name])
    return math.log(value) if logarithmic else value
