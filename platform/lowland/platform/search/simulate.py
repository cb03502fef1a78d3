"""A search under virtual time, against recorded or surrogate learning curves; the code that decides is the real one."""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lowland.platform.search.ledger import SEGMENTS
from lowland.platform.search.policies import Policy
from lowland.platform.search.study import Study
from lowland.platform.search.trials import Segment


class Curves(Protocol):
    """Learning curves of any parameters."""

    def values(self, parameters: Mapping[str, Any], start: int, end: int) -> list[float]:
        """The metric, in the study's direction, at start + 1, ..., end."""

    def seconds(self, parameters: Mapping[str, Any], start: int, end: int) -> float:
        """How long training from start to end takes."""


@dataclass(frozen=True)
class Point:
    """The state of a search when something was measured."""

    seconds: float
    """Virtual, since the beginning."""
    resource: int
    """Spent by all workers on what was measured so far."""
    best: float
    """The lowest value so far; negated if the metric is to rise."""
    cost: float
    """Seconds of all workers spent on what was measured so far."""


def simulate(
    study: Study,
    policy: Policy,
    curves: Curves,
    *,
    workers: int,
    budget: int,
    start_seconds: float = 0.0,
    until: float = -math.inf,
    until_cost: float = math.inf,
) -> list[Point]:
    """Runs a search until its budget of resource is spent.

    Args:
        study: a new one.
        policy: how far trials are trained.
        curves: what training would give.
        workers: segments at a time.
        budget: resource after which no segment begins.
        start_seconds: what the start of each segment costs.
        until: the search also ends when its best value is this low.
        until_cost: or when its workers have spent this many seconds on what was measured.

    Returns:
        The state after each segment, in order of time.
    """
    sign = 1.0 if study.direction == "minimize" else -1.0
    running: list[tuple[float, int, Segment]] = []
    points: list[Point] = []
    now, begun, spent, best, cost = 0.0, 0, 0, math.inf, 0.0

    def begin(segment: Segment) -> None:
        nonlocal begun
        took = curves.seconds(study.trial(segment.trial).parameters, segment.start, segment.end)
        heapq.heappush(running, (now + start_seconds + took, segment.trial, segment))
        begun += segment.end - segment.start

    def goes_on() -> bool:
        return begun < budget and best > until and cost < until_cost

    while True:
        while len(running) < workers and goes_on() and not _waits(study, policy):
            begin(study.next(policy))
            for number in study.replaced() if policy.most is not None else ():
                study.stop(number)
        if not running:
            return points
        now, number, segment = heapq.heappop(running)
        measured = curves.values(study.trial(number).parameters, segment.start, segment.end)
        for resource, value in enumerate(measured, segment.start + 1):
            study.report(number, resource, value)
            best = min(best, math.inf if math.isnan(value) else value * sign)
        spent += segment.end - segment.start
        cost += _note_cost(study, curves, segment, start_seconds)
        points.append(Point(now, spent, best, cost))
        following = study.ended(number, policy)
        if following is not None and goes_on():
            begin(following)


def _waits(study: Study, policy: Policy) -> bool:
    """Whether nothing can begin before a segment ends."""
    trials = study.trials() if policy.most is not None else []
    own = sum(trial.origin is None for trial in trials)
    return policy.most is not None and own >= policy.most and policy.resume(trials) is None


def _note_cost(study: Study, curves: Curves, segment: Segment, start_seconds: float) -> float:
    """What a segment took, as if each worker were one GPU."""
    took = start_seconds + curves.seconds(study.trial(segment.trial).parameters, segment.start, segment.end)
    earlier = study.notes(segment.trial).get(SEGMENTS, [])
    study.note(segment.trial, SEGMENTS, [*earlier, {"seconds": took, "gpus": 1, "cpus": 1}])
    return took
