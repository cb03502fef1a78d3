"""How many epochs searches need, on recorded or surrogate learning curves under virtual time.

    python benchmarks/search_efficiency.py --lcbench FOLDER --results results.json [--budget SECONDS] [--jobs N]
    python benchmarks/search_efficiency.py --curves table.parquet --results results.json

FOLDER holds the YAHPO surrogate of LCBench (model.onnx, config_space.json, encoding.json); it needs a package that
lowland does not: pip install onnxruntime.  Measured are the tasks on which nothing was developed, or with
`--development` the others.  Results are kept run by run: called again, it goes on with what is missing.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import optuna
from search_curves import DEVELOPED_ON, CurveTable, LCBench, tasks
from search_methods import METHODS, PRIOR_METHODS, Curves, priors_of
from search_report import report

from lowland.platform.search.simulate import Point, simulate
from lowland.platform.search.study import Study

RANDOM_TRIALS, RANDOM_SEEDS = 64, 40
CAP = 64
"""Whole trainings after which a run that has not reached its target is given up."""


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


def run(source: str, cell: Cell, cap: int) -> dict[str, object]:
    """Searches once; what it spent until the target was reached, or in all."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves, target = curves_of(source, cell.task), target_of(source, cell.task)
    priors = priors_of(curves, cell.task) if cell.method in PRIOR_METHODS else {}
    sampler, policy, as_tune = METHODS[cell.method](curves, cell.seed, priors)
    study = Study(optuna.storages.InMemoryStorage(), "search", curves.space, curves.direction, sampler)
    if as_tune:
        _tell_stopped_as_complete(study)
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


def _tell_stopped_as_complete(study: Study) -> None:
    """As Ray Tune's OptunaSearch does: a stopped trial is told as finished, with the value it had."""
    inner = study._study
    tell = inner.tell

    def complete(number: int, value: float | None = None, state: object = None) -> object:
        if state == optuna.trial.TrialState.PRUNED:
            curve = inner.trials[number].intermediate_values
            return tell(number, curve[max(curve)])
        return tell(number, value, state=state)

    inner.tell = complete


def cells(options: argparse.Namespace, done: dict[str, dict[str, object]]) -> Iterator[Cell]:
    """What is missing, seed by seed, so that all tasks and methods have about equally many."""
    if options.lcbench:
        every = tasks(options.lcbench)
        chosen = every[:DEVELOPED_ON] if options.development else every[DEVELOPED_ON:]
    else:
        chosen = [options.curves.stem]
    for seed in range(options.seeds):
        for task in chosen[:: options.every]:
            for method in options.methods:
                for workers in options.workers:
                    cell = Cell(task, method, workers, seed)
                    if cell.key not in done:
                        yield cell


def measure(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Runs what is missing, as far as the time allows."""
    source = str(options.lcbench or options.curves)
    done = json.loads(options.results.read_text()) if options.results.exists() else {}
    missing, end = cells(options, done), time.monotonic() + options.budget
    with ProcessPoolExecutor(options.jobs) as pool:
        while time.monotonic() < end and (batch := list(islice(missing, 4 * options.jobs))):
            futures = [(cell, pool.submit(run, source, cell, options.cap)) for cell in batch]
            done |= {cell.key: future.result() for cell, future in futures}
            options.results.write_text(json.dumps(done))
    return done


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lcbench", type=Path, help="folder of the surrogate")
    source.add_argument("--curves", type=Path, help="Parquet file of recorded curves")
    parser.add_argument("--results", type=Path, required=True, help="JSON file that is extended")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cap", type=int, default=CAP, help="whole trainings per run at most")
    parser.add_argument("--every", type=int, default=1, help="only every so manieth task")
    parser.add_argument("--development", action="store_true", help="the tasks on which methods were developed")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no run begins")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    print(report(measure(given)))
