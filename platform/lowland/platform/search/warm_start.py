"""What earlier trainings tell a new search: of the same task as trials, of a related one as beliefs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lowland.platform.search.samplers.encoding import Conditions, Encoding
from lowland.search_spaces import Prior
from lowland.search_spaces.priors import confidence

_BEST = 0.25
"""Part of a related task's trainings that a belief is drawn from."""
_LEAST = 0.08
"""Standard deviation, as a part of the range, below which no other task can tell where the best lies."""


@dataclass(frozen=True)
class Earlier:
    """A training of before."""

    source: str
    """Says where it comes from, as 'study a, trial 3'."""
    parameters: Mapping[str, Any]
    curve: Mapping[int, float]
    """By resource, in the new search's units and in its direction, what was measured."""


@dataclass(frozen=True)
class Chosen:
    """What of earlier trainings a search can use."""

    used: tuple[Earlier, ...]
    skipped: Mapping[str, str]
    """By source, why."""

    def lines(self) -> list[str]:
        """For people: which were used, and why others were not."""
        used = ", ".join(earlier.source for earlier in self.used) or "none"
        return [f"used: {used}", *(f"skipped {source}: {why}" for source, why in self.skipped.items())]


def choose(
    space: Mapping[str, BaseDistribution], trainings: Iterable[Earlier], conditions: Conditions | None = None
) -> Chosen:
    """Those that are points of a space and were measured.

    Args:
        space: the new search's.
        trainings: of before.
        conditions: of parameters that count in some alternatives only.
    """
    used, skipped = list[Earlier](), dict[str, str]()
    for training in trainings:
        if why := _misfit(space, training, conditions or {}):
            skipped[training.source] = why
        else:
            used.append(training)
    return Chosen(tuple(used), skipped)


def beliefs(
    space: Mapping[str, BaseDistribution], tasks: Sequence[Sequence[Earlier]], *, rising: bool
) -> dict[str, Prior]:
    """Priors from related tasks: where the best quarter of each task's trainings lies.

    Args:
        space: the new search's; a parameter's values outside of it are left out.
        tasks: the trainings of each related task, at least four of each.
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
    finite = [t for t in task if t.curve and np.isfinite(list(t.curve.values())).all()]
    reached = max((max(t.curve) for t in finite), default=0)
    whole = [t for t in finite if max(t.curve) >= reached / 3]
    ordered = sorted(whole, key=lambda t: t.curve[max(t.curve)], reverse=rising)
    return ordered[: round(len(ordered) * _BEST)]


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


def _misfit(space: Mapping[str, BaseDistribution], training: Earlier, conditions: Conditions) -> str:
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
