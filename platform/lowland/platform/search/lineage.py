"""How a trial of a population came about: the trials whose weights it has, part by part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowland.platform.search.results import StudyResult, TrialResult


@dataclass(frozen=True)
class Stretch:
    """A part of a training, under one trial's parameters."""

    trial: int
    start: int
    end: int
    parameters: Mapping[str, Any]


def lineage(result: StudyResult, trial: TrialResult) -> list[Stretch]:
    """The stretches of a trial's training, its own last; one if it was forked from none."""
    trials = {one.number: one for one in result.trials}
    found, end = [Stretch(trial.number, trial.begun_at, trial.reached, trial.parameters)], trial.begun_at
    origin = trial.origin
    while origin is not None:
        parent = trials[origin.parent]
        found.append(Stretch(parent.number, parent.begun_at, end, parent.parameters))
        origin, end = parent.origin, parent.begun_at
    return found[::-1]


def changing(stretches: Sequence[Stretch]) -> list[str]:
    """The parameters that are not the same in all stretches."""
    names = dict.fromkeys(name for one in stretches for name in one.parameters)
    return [name for name in names if len({repr(one.parameters.get(name)) for one in stretches}) > 1]
