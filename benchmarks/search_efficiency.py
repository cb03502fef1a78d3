"""How many epochs searches need, on recorded or surrogate learning curves under virtual time.

    python benchmarks/search_efficiency.py --lcbench FOLDER --results results.json [--budget SECONDS] [--jobs N]
    python benchmarks/search_efficiency.py --curves table.parquet --results results.json
    python benchmarks/search_efficiency.py ... --tasks 0-8 --seeds 10-19 --results second.json      # a part, elsewhere
    python benchmarks/search_efficiency.py ... --results results.json --merge second.json --budget 0

FOLDER holds the YAHPO surrogate of LCBench (model.onnx, config_space.json, encoding.json); it needs a package that
lowland does not: pip install onnxruntime.  Measured are the tasks on which nothing was developed, or with
`--development` the others.  Results are kept run by run: called again, it goes on with what is missing.  Parts by
task, seed, method or number of workers may be measured side by side, each with results of its own, and put together.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from search_curves import DEVELOPED_ON, CurveTable, LCBench, tasks
from search_methods import METHODS, PRIOR_METHODS, Curves, priors_of
from search_report import report

from lowland.platform.search.simulate import Point, simulate
from lowland.platform.search.study import Study

RANDOM_TRIALS, RANDOM_SEEDS = 64, 40
CAP = 64
"""Whole trainings after which a run that has not reached its target is given up."""
Run = dict[str, Any]


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


@cache
def curves_of(source: str, task: str) -> Curves:
    """The curves of a task."""
    path = Path(source)
    return LCBench(path, task) if path.is_dir() else CurveTable(path)


@cache
def target_of(source: str, task: str) -> float:
    """The mean best of random search with 64 whole trainings; lower is better, whatever the metric."""
    curves, sign = curves_of(source, task), _sign(curves_of(source, task))
    bests = []
    for seed in range(RANDOM_SEEDS):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=10_000 + seed))
        drawn = [study.ask(curves.space).params for _ in range(RANDOM_TRIALS)]
        bests.append(min(sign * value for p in drawn for value in curves.values(p, 0, curves.full) if value == value))
    return sum(bests) / len(bests)


def _sign(curves: Curves) -> float:
    return 1.0 if curves.direction == "minimize" else -1.0


def run(source: str, cell: Cell, cap: int, target: float | None = None) -> Run:
    """Searches once; what it spent until the target was reached, or in all.

    Args:
        source: folder or file of the curves.
        cell: what is run.
        cap: whole trainings at most.
        target: of the task, if it is known already.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves = curves_of(source, cell.task)
    target = target if target is not None else target_of(source, cell.task)
    priors = priors_of(curves, cell.task) if cell.method in PRIOR_METHODS else {}
    sampler, policy, as_tune = METHODS[cell.method](curves, cell.seed, priors)
    storage = ToldComplete() if as_tune else InMemoryStorage()
    study = Study(storage, "search", curves.space, curves.direction, sampler)
    begun = time.process_time()
    # With the cost in mind the whole budget is used: its bar is on the regret at equal seconds.
    until = float("-inf") if cell.method.startswith("cost") else target
    points = simulate(study, policy, curves, workers=cell.workers, budget=cap * curves.full, until=until)
    trials = len(study.trials())
    return {
        **asdict(cell),
        "cap": cap,
        "target": target,
        "reached": points[-1].best <= target,
        "trainings": _first(points, target).resource / curves.full,
        "trials": trials,
        "cpu_seconds_per_proposal": (time.process_time() - begun) / trials,
        "costs": [(p.cost, p.best) for p in points if _improves(points, p)] if until < target else [],
    }


def _first(points: list[Point], target: float) -> Point:
    return next((point for point in points if point.best <= target), points[-1])


def _improves(points: list[Point], point: Point) -> bool:
    return not any(earlier.cost < point.cost and earlier.best <= point.best for earlier in points)


def cells(options: argparse.Namespace, done: frozenset[str]) -> Iterator[Cell]:
    """What is missing, seed by seed, so that all tasks and methods have about equally many."""
    if options.lcbench:
        every = tasks(options.lcbench)
        chosen = every[:DEVELOPED_ON] if options.development else every[DEVELOPED_ON:]
    else:
        chosen = [options.curves.stem]
    for seed in options.seeds:
        for task in (task for i, task in enumerate(chosen[:: options.every]) if i in options.tasks):
            for method in options.methods:
                for workers in options.workers:
                    cell = Cell(task, method, workers, seed)
                    if cell.key not in done:
                        yield cell


def measure(options: argparse.Namespace) -> dict[str, Run]:
    """Runs what is missing, as far as the time allows."""
    source = str(options.lcbench or options.curves)
    done = merged([*options.merge, *([options.results] if options.results.exists() else [])])
    targets = {one["task"]: one["target"] for one in done.values()}
    missing, end = cells(options, frozenset(done)), time.monotonic() + options.budget
    with ProcessPoolExecutor(options.jobs) as pool:
        running = dict[Future[Run], Cell]()
        while True:
            while len(running) < options.jobs and time.monotonic() < end and (cell := next(missing, None)):
                running[pool.submit(run, source, cell, options.cap, targets.get(cell.task))] = cell
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                done[cell.key] = future.result()
                targets[cell.task] = done[cell.key]["target"]
            _write(options.results, done)
    _write(options.results, done)
    return done


def merged(files: Sequence[Path]) -> dict[str, Run]:
    """The runs of several results, each once.

    Raises:
        ValueError: they differ in a task's target or in the cap, so that they are not of one measurement.
    """
    runs = {key: one for file in files for key, one in json.loads(file.read_text()).items()}
    for field, by in (("target", "task"), ("cap", "method")):
        found = dict[str, Any]()
        for one in runs.values():
            if found.setdefault(one[by], one[field]) != one[field]:
                raise ValueError(
                    f"{by} {one[by]} has {field} {found[one[by]]} in one of the results, {one[field]} in another"
                )
    return runs


def numbers(text: str) -> range:
    """`20` is the first twenty, `5-9` those from 5 to 9."""
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def _write(path: Path, results: dict[str, Run]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results))
    part.replace(path)


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lcbench", type=Path, help="folder of the surrogate")
    source.add_argument("--curves", type=Path, help="Parquet file of recorded curves")
    parser.add_argument("--results", type=Path, required=True, help="JSON file that is extended")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seeds", type=numbers, default=range(20), help="how many, or from-to")
    parser.add_argument(
        "--tasks", type=numbers, default=range(1000), help="how many in their order, or from-to, from 0"
    )
    parser.add_argument("--merge", nargs="+", type=Path, default=[], help="other results that are put in too")
    parser.add_argument("--cap", type=int, default=CAP, help="whole trainings per run at most")
    parser.add_argument("--every", type=int, default=1, help="only every so manieth task")
    parser.add_argument("--development", action="store_true", help="the tasks on which methods were developed")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no run begins")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    print(report(measure(given)))
