"""Early stopping: how far each trial is trained, and which goes on.

A policy is a pure function of the trials.  A trial is trained in segments that end by themselves; it is never
killed.  `after` is asked when a segment has ended, `next` when a worker is free.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, Protocol

from lowland.platform.search.trials import Fork, Segment, TrialView, at

Verdict = Literal["go on", "pause", "stop"]


class Policy(Protocol):
    """How far trials are trained; `full` is the resource of a whole training."""

    @property
    def full(self) -> int:
        """The resource of a whole training."""

    @property
    def first(self) -> int:
        """The least resource at which a new trial's first segment may end."""

    @property
    def most(self) -> int | None:
        """Trials that begin at most, those that are forked from others aside; None is without limit."""

    def begin(self, number: int) -> int:
        """Where the first segment of a new trial ends."""

    def after(self, trial: TrialView, trials: Sequence[TrialView]) -> Verdict:
        """What becomes of a trial whose segment has ended before `full`."""

    def resume(self, trials: Sequence[TrialView]) -> Segment | Fork | None:
        """The paused trial to go on with now, or to fork a new one from; None to begin one."""

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
    def most(self) -> None:
        """Without limit."""
        return None

    @property
    def levels(self) -> tuple[int, ...]:
        """All rungs, `full` last."""
        return rungs(self.first, self.full, self.factor)

    def begin(self, number: int) -> int:
        """At the first rung."""
        return self.first

    def beyond(self, resource: int) -> int:
        """The next rung."""
        return next(level for level in self.levels if level > resource)


@dataclass(frozen=True)
class Promotion(_Rungs):
    """Asynchronous successive halving by promotion (Li et al., arXiv 1810.05934): the default.

    Every trial pauses at its rung.  Whenever a worker is free, the best trial in the highest rung that is among the
    first 1/factor of all that ever reached that rung goes on; if there is none, a new trial begins.

    The proposals of a sampler that learns get better, so that most of them would be among the first when they come,
    and go on.  While other new trials are under way, which may be better still, no more than 1/factor go on from a
    rung, those included that went on earlier and have been overtaken since.
    """

    def after(self, trial: TrialView, trials: Sequence[TrialView]) -> Verdict:
        """Always pauses."""
        return "pause"

    def resume(self, trials: Sequence[TrialView]) -> Segment | None:
        """The best trial that deserves the next rung, from the highest rung down."""
        paused = {trial.number for trial in trials if trial.status == "paused"}
        expected = any(trial.status == "running" and not set(self.levels) & set(trial.curve) for trial in trials)
        for level in reversed(self.levels[:-1]):
            values = at(trials, level)
            share = len(values) // self.factor
            if expected and _gone_on(trials, level) >= share:
                continue
            best = sorted(values, key=lambda number: (values[number], number))[:share]
            for number in best:
                trial = next(t for t in trials if t.number == number)
                if number in paused and trial.target == level:
                    return Segment(number, level, self.beyond(level))
        return None


def _gone_on(trials: Sequence[TrialView], level: int) -> int:
    """How many of the search's own trials were sent on from a rung."""
    return sum(level in trial.curve and trial.target > level and not trial.source for trial in trials)


@dataclass(frozen=True)
class Hyperband(_Rungs):
    """Promotion in several brackets (Li et al., 2018, without its waits): for metrics whose early order may deceive.

    Bracket s of k begins at the s-th rung and promotes among its own; new trials go to the brackets in Hyperband's
    proportions, ceil(k / j) factor^(j - 1) to the one with j rungs before the end.
    """

    def begin(self, number: int) -> int:
        """At the first rung of its bracket."""
        return self.levels[self._bracket(number)]

    def after(self, trial: TrialView, trials: Sequence[TrialView]) -> Verdict:
        """Always pauses."""
        return "pause"

    def resume(self, trials: Sequence[TrialView]) -> Segment | None:
        """Of the brackets in turn, the first trial that deserves to go on."""
        for bracket in range(len(self.levels)):
            own = [trial for trial in trials if self._bracket(trial.number) == bracket]
            segment = Promotion(self.full, self.first, self.factor).resume(own)
            if segment is not None:
                return segment
        return None

    def _bracket(self, number: int) -> int:
        """Evenly interleaved, so that any stretch of trials has about the right shares."""
        count = len(self.levels)
        sizes = [math.ceil(count / (count - s)) * self.factor ** (count - s - 1) for s in range(count)]
        order = sorted(((i + 0.5) / size, s) for s, size in enumerate(sizes) for i in range(size))
        return order[number % len(order)][1]


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

    @property
    def most(self) -> None:
        """Without limit."""
        return None

    def begin(self, number: int) -> int:
        """All alike."""
        return self.first

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
