"""A trial as storage has it: what its attributes mean."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from lowland.platform.search.objectives import Bound, Direction
from lowland.platform.search.trials import ORIGIN, SOURCE, TARGET, Origin, Status, TrialView, waits

REASON, NOTE = "lowland:reason", "lowland:note:"
BEFORE, MEASURED = "before", "measured"
"""Names of the notes of a trial that hold what its parent had trained when it was forked, and what was measured besides
the first metric, by resource."""
WORST = 1e308
"""Stands for infinity in a finished trial of which no other tells what is bad: Optuna's samplers want numbers."""


def view_of(trial: FrozenTrial, sign: float, bounds: Sequence[Bound]) -> TrialView:
    """A trial for those who decide; where it broke a bound its value is the worst.

    Args:
        trial: in storage.
        sign: what makes lower values better.
        bounds: that it must keep.
    """
    attributes = trial.user_attrs
    broken = broken_at(bounds, attributes)
    curve = {r: math.inf if r in broken else value * sign for r, value in trial.intermediate_values.items()}
    return TrialView(
        trial.number,
        trial.params,
        curve,
        status_of(trial),
        attributes.get(TARGET, 0),
        attributes.get(SOURCE, ""),
        Origin(**attributes[ORIGIN]) if ORIGIN in attributes else None,
        attributes.get(NOTE + "end") == "refused",
    )


def worst(trials: Iterable[FrozenTrial], directions: Sequence[Direction]) -> list[float]:
    """By objective, the worst value that a finished trial has."""
    finished = [trial.values for trial in trials if trial.state == TrialState.COMPLETE]
    signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
    if not finished:
        return [WORST * sign for sign in signs]
    columns = zip(*finished, strict=True)
    return [sign * max(sign * value for value in column) for sign, column in zip(signs, columns, strict=True)]


def broken_at(bounds: Sequence[Bound], attributes: Mapping[str, Any]) -> dict[int, list[str]]:
    """By resource, the bounds that a trial in storage broke there, with what was measured; from its user attributes."""
    found: dict[int, list[str]] = {}
    for resource, values in attributes.get(NOTE + MEASURED, {}).items() if bounds else ():
        broken = [f"{b}: {values[b.metric]:.4g}" for b in bounds if b.excess(values.get(b.metric, math.nan)) > 0]
        if broken:
            found[int(resource)] = broken
    return found


def status_of(trial: FrozenTrial) -> Status:
    """How a trial stands, from what storage has of it."""
    match trial.state:
        case TrialState.COMPLETE:
            return "finished"
        case TrialState.PRUNED:
            return "stopped"
        case TrialState.FAIL:
            return "failed"
        case _:
            return "paused" if waits(trial.user_attrs) else "running"
