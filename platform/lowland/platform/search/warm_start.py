"""What earlier trainings tell a new search: of the same task as trials, of a related one as beliefs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lowland.platform.search.samplers.encoding import Conditions, Encoding
from lowland.platform.search.trials import Earlier
from lowland.search_spaces import Prior
from lowland.search_spaces.priors import confidence

_BEST = 0.25
"""Part of a related task's trainings that a belief is drawn from."""
_LEAST = 0.08
"""Standard deviation, as a part of the range, below which no other task can tell where the best lies."""


def beliefs(
    space: Mapping[str, BaseDistribution], tasks: Sequence[Sequence[Earlier]], *, rising: bool
) -> dict[str, Prior]:
    """Priors from related tasks: where the best quarter of each task's trainings lies.

    Args:
        space: the new search's; a parameter's values outside of it are left out.
        tasks: the trainings of each related task.
        rising: whether the metric is to rise.

    Returns:
        By parameter; those of which fewer than three good values are known have none.
    """
    good = [training for task in tasks for training in _best(task, rising)]
    found = dict[str, Prior]()
    for name, distribution in space.items():
        values = [t.parameters[name] for t in good if name in t.parameters and _fits(distribution, t.parameters[name])]
        if len(values) >= 3 and not distribution.single():
            found[name] = _belief(name, distribution, values)
    return found


def _best(task: Sequence[Earlier], rising: bool) -> list[Earlier]:
    """A quarter of a task's trainings: those that came furthest, since early stopping lets the best go on."""
    finite = [t for t in task if t.curve and np.isfinite(list(t.curve.values())).all()]
    sign = -1.0 if rising else 1.0
    ordered = sorted(finite, key=lambda t: (-max(t.curve), sign * t.curve[max(t.curve)]))
    return ordered[: math.ceil(len(ordered) * _BEST)]


def _belief(name: str, distribution: BaseDistribution, values: list[Any]) -> Prior:
    if isinstance(distribution, CategoricalDistribution):
        commonest = max(distribution.choices, key=values.count)
        share = (values.count(commonest) + 1) / (len(values) + len(distribution.choices))
        return Prior(centre=commonest, confidence=share)
    encoding = Encoding({name: distribution})
    places = encoding.encode([{name: value} for value in values])[:, 0]
    middle = np.median(places)
    deviation = max(float(np.sqrt(((places - middle) ** 2).mean())), _LEAST)
    return Prior(centre=encoding.decode(np.array([middle]))[name], confidence=confidence(deviation))


def misfit(space: Mapping[str, BaseDistribution], training: Earlier, conditions: Conditions) -> str:
    """Why a training is no measured point of a space; empty if it is one.

    Args:
        space: the new search's.
        training: of before.
        conditions: of parameters that count in some alternatives only.
    """
    given = training.parameters
    if not training.curve:
        return "nothing was measured"
    if extra := sorted(set(given) - set(space)):
        return f"it also searched {', '.join(extra)}"
    for name, distribution in space.items():
        counts = all(given.get(branch) == alternative for branch, alternative in conditions.get(name, ()))
        if name not in given:
            if counts:
                return f"{name} is not known"
        elif not _fits(distribution, given[name]):
            return f"{name}: {given[name]} lies outside the space"
    return ""


def _fits(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return distribution.low <= value <= distribution.high and distribution._contains(value)
