"""Early stopping: how far each trial is trained, and which goes on.

A policy is a pure function of the trials.  A trial is trained in segments that end by themselves; it is never
killed.  `after` is asked when a segment has ended, `next` when a worker is free.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, Protocol

from lowland.platform.search.trials import Segment, TrialView, at

Verdict = Literal["go on", "pause", "stop"]


class Policy(Protocol):
    """How far trials are trained; `full` is the resource of a whole training."""

    @property
    def full(self) -> int:
        """The resource of a whole training."""

    @property
    def first(self) -> int:
        """Where the first segment of a new trial ends."""

    def after(self, trial: TrialView, trials: Sequence[TrialView]) -> Verdict:
        """What becomes of a trial whose segment has ended before `full`."""

    def resume(self, trials: Sequence[TrialView]) -> Segment | None:
        """The paused trial to go on with now; None to begin a new one."""

    def beyond(self, resource: int) -> int:
        """Where the segment after one that ended at `resource` ends."""


def rungs(first: int, full: int, factor: int) -> tuple[int, ...]:
    """first, first * factor, ... and full; a rung within a third of `full` gives way to it."""
    levels = []
    level = first
    while level * 1.5 <= full:
        levels.append(level)
        level *= factor
    return (*levels, full)


def default_first(full: int) -> int:
    """A seventeenth of a training: with less, the order of trials says little about the end."""
    return max(1, round(full / 17))


@dataclass(frozen=True)
class _Rungs:
    """Rungs at which trials are compared.

    Args:
        full: the resource of a whole training.
        first: the first rung; 0 is a seventeenth of `full`.
        factor: of each rung's trials, one in `factor` goes on (eta).
    """

    full: int
    first: int = 0
    factor: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.full:
            raise ValueError(f"the first rung lies in [1, {self.full}], got {self.first}")
        if self.factor < 2:
            raise ValueError(f"factor >= 2 must hold, got {self.factor}")
        if self.first == 0:
            object.__setattr__(self, "first", default_first(self.full))

    @property
    def levels(self) -> tuple[int, ...]:
        """All rungs, `full` last."""
        return rungs(self.first, self.full, self.factor)

    def beyond(self, resource: int) -> int:
        """The next rung."""
        return next(level for level in self.levels if level > resource)


@dataclass(frozen=True)
class Promotion(_Rungs):
    """Asynchronous successive halving by promotion (Li et al., arXiv 1810.05934): the default.

    Every trial pauses at its rung.  Whenever a worker is free, the best trial in the highest rung that is among the
    first 1/factor of all that ever reached that rung goes on; if there is none, a new trial begins.
    """

    def after(self, trial: TrialView, trials: Sequence[TrialView]) -> Verdict:
        """Always pauses."""
        return "pause"

    def resume(self, trials: Sequence[TrialView]) -> Segment | None:
        """The best trial that deserves the next rung, from the highest rung down."""
        paused = {trial.number for trial in trials if trial.status == "paused"}
        for level in reversed(self.levels[:-1]):
            values = at(trials, level)
            best = sorted(values, key=lambda number: (values[number], number))[: len(values) // self.factor]
            for number in best:
                trial = next(t for t in trials if t.number == number)
                if number in paused and trial.target == level:
                    return Segment(number, level, self.beyond(level))
        return None


@dataclass(frozen=True)
class Stopping(_Rungs):
    """Asynchronous successive halving by stopping, as Ray Tune's ASHAScheduler: a trial that is stopped never returns.

    A trial goes on if its value is in the first 1/factor of those that reached its rung so far; the first always does.
    """

    def after(self, trial: TrialView, trials: Sequence[TrialView]) -> Verdict:
        """Goes on or is stopped."""
        values = at(trials, trial.target)
        rank = sum(value < values[trial.number] for value in values.values())
        return "go on" if rank < max(1, math.ceil(len(values) / self.factor)) else "stop"

    def resume(self, trials: Sequence[TrialView]) -> Segment | None:
        """Never: nothing pauses."""
        return None


@dataclass(frozen=True)
class Median(_Rungs):
    """The median rule (Golovin et al., 2017): stopped if worse than the median of the others at the same rung.

    Args:
        least: how many others must have been there.
    """

    factor: int = 2
    least: int = 3

    def after(self, trial: TrialView, trials: Sequence[TrialView]) -> Verdict:
        """Goes on or is stopped."""
        others = [value for number, value in at(trials, trial.target).items() if number != trial.number]
        worse = len(others) >= self.least and trial.curve[trial.target] > median(others)
        return "stop" if worse else "go on"

    def resume(self, trials: Sequence[TrialView]) -> Segment | None:
        """Never: nothing pauses."""
        return None


@dataclass(frozen=True)
class Fixed:
    """No early stopping, or a fixed one (i-Epoch, Egele et al., arXiv 2404.04111).

    Args:
        full: the resource of a whole training.
        first: every trial is trained so far; the best of every `full / first` that were is then trained to the end.
    """

    full: int
    first: int

    def after(self, trial: TrialView, trials: Sequence[TrialView]) -> Verdict:
        """Pauses, since it may turn out the best."""
        return "pause"

    def resume(self, trials: Sequence[TrialView]) -> Segment | None:
        """The best one, once there were enough for one more whole training."""
        values = at(trials, self.first)
        whole = sum(trial.target == self.full for trial in trials)
        best = sorted(values, key=lambda number: (values[number], number))
        waiting = [t.number for t in trials if t.status == "paused"]
        if len(values) * self.first < (whole + 1) * self.full:
            return None
        return next((Segment(number, self.first, self.full) for number in best if number in waiting), None)

    def beyond(self, resource: int) -> int:
        """The end."""
        return self.full
