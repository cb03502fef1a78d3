"""One simulated search of search_efficiency.py, and what its task's searches share."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from search_curves import CurveTable, LCBench
from search_methods import COST_BASE, COST_METHODS, METHODS, PRIOR_METHODS, Curves, Priors, priors_of

from lowland.platform.search.simulate import Point, simulate
from lowland.platform.search.study import Study

RANDOM_TRIALS, RANDOM_SEEDS = 64, 40
CHEAPER = 4
"""So many times as many epochs as TPE has, those may have that mind the cost: it is the seconds that end them."""
Run = dict[str, Any]
Known = tuple[float, Priors]
"""The target of a task, and its priors if a method wants them."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    task: str
    method: str
    workers: int
    seed: int

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.task}/{self.method}/{self.workers}/{self.seed}"


class ToldComplete(InMemoryStorage):
    """What is stopped counts as finished with the value it had, as Ray Tune's OptunaSearch tells it."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Keeps how a trial ended."""
        return super().set_trial_state_values(
            trial_id, TrialState.COMPLETE if state == TrialState.PRUNED else state, values
        )


class Recorded:
    """Curves that keep what a search measured of them.

    Args:
        curves: these.
    """

    def __init__(self, curves: Curves) -> None:
        self._curves, self._sign = curves, 1.0 if curves.direction == "minimize" else -1.0
        self.space, self.full, self.direction = curves.space, curves.full, curves.direction
        self.measured: list[tuple[Mapping[str, Any], int, float]] = []
        """Of each segment the parameters, where it ended, and the value there; lower is better."""

    def values(self, parameters: Mapping[str, Any], start: int, end: int) -> list[float]:
        """As of the curves."""
        values = self._curves.values(parameters, start, end)
        self.measured.append((parameters, end, self._sign * values[-1]))
        return values

    def seconds(self, parameters: Mapping[str, Any], start: int, end: int) -> float:
        """As of the curves."""
        return self._curves.seconds(parameters, start, end)

    def chosen(self, segments: int) -> tuple[float, bool]:
        """After so many segments, the best of the trials that came furthest: its value if trained whole; if it was."""
        parameters, end, _ = min(self.measured[:segments], key=lambda one: (-one[1], one[2]))
        return self._sign * self._curves.values(parameters, 0, self.full)[-1], end == self.full


@cache
def curves_of(source: str, task: str) -> Curves:
    """The curves of a task."""
    path = Path(source)
    return LCBench(path, task) if path.is_dir() else CurveTable(path)


def known_of(source: str, task: str, methods: Sequence[str], target: float | None) -> Known:
    """What all runs of a task share; a target that is known already is not computed again.

    The target is the mean best of random search with 64 whole trainings; lower is better, whatever the metric.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves = curves_of(source, task)
    priors = priors_of(curves, task) if set(methods) & set(PRIOR_METHODS) else {}
    return _target(curves) if target is None else target, priors


def _target(curves: Curves) -> float:
    sign = 1.0 if curves.direction == "minimize" else -1.0
    bests = []
    for seed in range(RANDOM_SEEDS):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=10_000 + seed))
        drawn = [study.ask(curves.space).params for _ in range(RANDOM_TRIALS)]
        bests.append(min(sign * value for p in drawn for value in curves.values(p, 0, curves.full) if value == value))
    return sum(bests) / len(bests)


def run(source: str, cell: Cell, cap: int, known: Known) -> Run:
    """Searches once: what it spent until the target was reached, or in all.

    With the cost in mind the target is the best that TPE finds in `cap` whole trainings, and the end the seconds that
    those take.

    Args:
        source: folder or file of the curves.
        cell: what is run.
        cap: whole trainings at most.
        known: of the task.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves, (target, priors) = curves_of(source, cell.task), known
    begun, budget = time.process_time(), cap * curves.full
    if cell.method in COST_METHODS:
        points, trials = search(curves, replace(cell, method=COST_BASE), {}, budget)
        if cell.method != COST_BASE:
            points, trials = search(curves, cell, {}, CHEAPER * budget, points[-1].best, points[-1].cost)
    else:
        points, trials = search(curves, cell, priors, budget, target)
    return {
        **asdict(cell),
        "cap": cap,
        "target": target,
        "reached": points[-1].best <= target,
        "trainings": _first(points, target).resource / curves.full,
        "trials": trials,
        "cpu_seconds": time.process_time() - begun,
        "costs": [(p.cost, p.best) for p in points if _improves(points, p)] if cell.method in COST_METHODS else [],
    }


def run_on(source: str, cell: Cell, cap: int, known: Known) -> Run:
    """Searches once, on when the target was reached: what the search would choose after each segment.

    Args:
        source: folder or file of the curves.
        cell: what is run.
        cap: whole trainings.
        known: of the task.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves, begun = Recorded(curves_of(source, cell.task)), time.process_time()
    points, trials = search(curves, cell, known[1], cap * curves.full)
    return {
        **asdict(cell),
        "cap": cap,
        "target": known[0],
        "trials": trials,
        "cpu_seconds": time.process_time() - begun,
        "chosen": [(p.resource / curves.full, *curves.chosen(i)) for i, p in enumerate(points, 1)],
    }


def search(
    curves: Curves | Recorded,
    cell: Cell,
    priors: Priors,
    budget: int,
    until: float = -math.inf,
    until_cost: float = math.inf,
) -> tuple[list[Point], int]:
    """The course of a search, ended as `simulate` says, and its number of trials."""
    sampler, policy, as_tune = METHODS[cell.method](curves, cell.seed, priors)
    storage = ToldComplete() if as_tune else InMemoryStorage()
    study = Study(storage, "search", curves.space, curves.direction, sampler)
    points = simulate(study, policy, curves, workers=cell.workers, budget=budget, until=until, until_cost=until_cost)
    return points, len(study.trials())


def _first(points: list[Point], target: float) -> Point:
    return next((point for point in points if point.best <= target), points[-1])


def _improves(points: list[Point], point: Point) -> bool:
    return not any(earlier.cost < point.cost and earlier.best <= point.best for earlier in points)
