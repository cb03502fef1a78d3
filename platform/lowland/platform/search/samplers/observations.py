"""What a sampler reads from an Optuna study."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtri
from scipy.stats import rankdata

from lowland.platform.search.ledger import SEGMENTS
from lowland.platform.search.samplers.encoding import Encoding
from lowland.platform.search.samplers.gaussian_process import Array
from lowland.platform.search.trials import waits

COSTS = f"lowland:note:{SEGMENTS}"
"""User attribute of a trial: the accounts of its segments, with `seconds`, `gpus` and `cpus`."""


@dataclass(frozen=True)
class Observations:
    """Measurements of all trials; of each curve a few places suffice."""

    points: Array
    """Parameters, [n, d]."""
    resources: Array
    """[n]"""
    values: Array
    """Lower is better, [n]."""


def observe(encoding: Encoding, study: Study, trials: Sequence[FrozenTrial]) -> Observations:
    """The measurements; what broke a constraint counts as no better than the middle one of those that did not.

    If it counted as the best, its surroundings would be worth looking at, however unlikely to be usable.
    """
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    rows = [(t, step, sign * t.intermediate_values[step]) for t in trials for step in places(t.intermediate_values)]
    points = encoding.encode([t.params for t, _, _ in rows])
    values = np.array([value for _, _, value in rows], float)
    if kept := [value for t, _, value in rows if usable(t)]:
        broken = np.array([usable(t) is False for t, _, _ in rows])
        values = np.where(broken, np.maximum(values, np.median(kept)), values)
    return Observations(points, np.array([step for _, step, _ in rows], float), values)


def places(curve: Mapping[int, float]) -> list[int]:
    """The last step of a curve, and those at a third, a ninth ... of it."""
    if not curve:
        return []
    last = max(curve)
    wanted = {last}
    step = last
    while step > 1:
        step = round(step / 3)
        wanted.add(min(curve, key=lambda s: abs(s - step)))
    return sorted(wanted)


def by_rank(values: Array) -> Array:
    """Normal scores: what a normal distribution has at their ranks, with zero mean and unit variance.

    Only the order counts: however the worst are scattered, the good ones stay apart.  Infinite values are worst.
    """
    ranks = rankdata(np.where(np.isfinite(values), values, math.inf))
    return _standard(ndtri((ranks - 0.5) / len(values)))


def by_distance(values: Array) -> Array:
    """log(1 + d), d the distance to the best in units of the median one's, with zero mean and unit variance.

    How much better the good ones are counts, and so how near a smooth minimum is; bad trainings are worse by orders
    of magnitude than good ones differ, hence the logarithm.  Infinite values lie one beyond the worst finite one.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros_like(values)
    best, unit = finite.min(), max(float(np.median(finite) - finite.min()), 1e-12)
    return _standard(
        np.log1p((np.where(np.isfinite(values), values, finite.max()) - best) / unit) + ~np.isfinite(values)
    )


def _standard(values: Array) -> Array:
    spread = float(values.std())
    result: Array = (values - values.mean()) / (spread if spread > 0 else 1.0)
    return result


def usable(trial: FrozenTrial) -> bool | None:
    """Whether its parameters made a valid training: finite values, constraints that hold; None if not known yet."""
    values = trial.intermediate_values.values()
    if any(value > 0 for value in trial.constraints.values()) or not all(map(math.isfinite, values)):
        return False
    return True if values else None


def cost(trial: FrozenTrial) -> float:
    """GPU-seconds so far; without GPUs, CPU-seconds."""
    return float(sum(a["seconds"] * (a["gpus"] or a["cpus"]) for a in trial.user_attrs.get(COSTS, [])))


def rate(trial: FrozenTrial) -> float | None:
    """What a unit of resource cost; None if not known."""
    spent, reached = cost(trial), max(trial.intermediate_values, default=0)
    return spent / reached if spent and reached and not is_running(trial) else None


def is_running(trial: FrozenTrial) -> bool:
    """Whether something is being measured: Optuna knows no paused trials, so a study marks them."""
    return trial.state == TrialState.RUNNING and not waits(trial.user_attrs)
