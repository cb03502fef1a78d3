"""Population based training as a policy: who goes on, and who is replaced by a copy of a better one."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lowland.platform.search.policies import Verdict
from lowland.platform.search.trials import Fork, Origin, Segment, TrialView

Explore = Callable[[Mapping[str, Any], random.Random], dict[str, Any]]
"""Parameters of a copy, from those of its parent."""
SHARE = 4
"""One in so many of the population is replaced at the end of an interval."""


@dataclass(frozen=True)
class Population:
    """Population based training (Jaderberg et al., arXiv 1711.09846).

    All members train in intervals of equal length.  At the end of each the worst quarter is given up, and each of
    these is replaced by a new trial: it begins with the weights that one of the best quarter has there, drawn at
    random (truncation selection), and with parameters that `explore` makes of that one's.  A member without a number
    is replaced too.  The paper compares whoever is ready with what the others had last; here all are compared where
    they trained equally long, and a member whose place among all is certain earlier goes on earlier.

    Args:
        full: the resource of a whole training.
        size: members.
        explore: makes a copy's parameters.
        intervals: of a training.
        seed: of the draws, which are functions of it, the replaced trial and the place alone.
    """

    full: int
    size: int
    explore: Explore
    intervals: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"a population has at least 2 members, got {self.size}")
        if not 2 <= self.intervals <= self.full:
            raise ValueError(f"there are 2 to {self.full} intervals, got {self.intervals}")

    @property
    def levels(self) -> tuple[int, ...]:
        """The ends of the intervals, `full` last."""
        return tuple(round(i * self.full / self.intervals) for i in range(1, self.intervals + 1))

    @property
    def first(self) -> int:
        """The end of the first interval."""
        return self.levels[0]

    @property
    def most(self) -> int:
        """Copies follow their parents; only the population itself begins."""
        return self.size

    def begin(self, number: int) -> int:
        """The end of the first interval."""
        return self.first

    def beyond(self, resource: int) -> int:
        """The end of the next interval."""
        return next(level for level in self.levels if level > resource)

    def after(self, trial: TrialView, trials: Sequence[TrialView]) -> Verdict:
        """Always pauses."""
        return "pause"

    def resume(self, trials: Sequence[TrialView]) -> Segment | Fork | None:
        """Who goes on, or is copied; those behind first, and nobody before all have begun."""
        if len(self._members(trials, self.first)) < self.size:
            return None
        for level, end in pairwise(self.levels):
            if (chosen := self._at(trials, level, end)) is not None:
                return chosen
        return None

    def share(self, trials: Sequence[TrialView]) -> float:
        """How much of the whole is done."""
        done = sum(len(self._standing(trials, level)) for level in self.levels)
        return done / (self.size * len(self.levels))

    def _at(self, trials: Sequence[TrialView], level: int, end: int) -> Segment | Fork | None:
        standing = self._standing(trials, level)
        ranked = sorted(standing, key=lambda number: (standing[number], number))
        replaced = {t.origin.replaces for t in trials if t.origin is not None and t.origin.resource == level}
        waiting = {t.number for t in trials if t.status == "paused" and t.target == level} - replaced
        few = max(1, self.size // SHARE)
        if len(ranked) < self.size:  # those that are among neither the best nor the worst, whoever is still to come
            sure = ranked[few : len(ranked) - few]
            return next((Segment(number, level, end) for number in sure if number in waiting), None)
        parents = [number for number in ranked[:few] if math.isfinite(standing[number])]
        losers = [n for n in ranked if n not in parents and (n in ranked[-few:] or math.isinf(standing[n]))]
        for loser in losers if parents else ():
            if loser not in replaced:
                return self._fork(trials, parents, loser, level, end)
        return next((Segment(number, level, end) for number in ranked if number in waiting), None)

    def _fork(self, trials: Sequence[TrialView], parents: Sequence[int], loser: int, level: int, end: int) -> Fork:
        generator = random.Random(f"{self.seed} {loser} {level}")
        parent = generator.choice(parents)
        parameters = next(t.parameters for t in trials if t.number == parent)
        return Fork(Origin(parent, loser, level), end, self.explore(parameters, generator))

    def _standing(self, trials: Sequence[TrialView], level: int) -> dict[int, float]:
        """By number, the values of the members that came to an interval's end; infinite for those that are lost."""
        members = self._members(trials, level)
        lost = {t.number: math.inf for t in members if t.status == "failed"}
        return lost | {t.number: t.curve[level] for t in members if level in t.curve}

    def _members(self, trials: Sequence[TrialView], level: int) -> list[TrialView]:
        """Those whose training comes, or came, from before an interval's end to it."""
        return [t for t in trials if t.begun_at < level <= t.target and not t.refused and not t.source]
