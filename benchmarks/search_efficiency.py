"""How many epochs searches need, on recorded or surrogate learning curves under virtual time.

    python benchmarks/search_efficiency.py --lcbench FOLDER --results results.json [--budget SECONDS] [--jobs N]
    python benchmarks/search_efficiency.py --curves table.parquet --results results.json
    python benchmarks/search_efficiency.py ... --tasks 0-8 --seeds 10-19 --results second.json      # a part, elsewhere
    python benchmarks/search_efficiency.py ... --results results.json --merge second.json --budget 0
    python benchmarks/search_efficiency.py ... --results small.json --after 2 4 6 8      # what few trainings give

FOLDER holds the YAHPO surrogate of LCBench (model.onnx, config_space.json, encoding.json); it needs a package that
lowland does not: pip install onnxruntime.  Measured are the tasks on which nothing was developed, or with
`--development` the others.  Results are kept as runs end: called again, it goes on with what is missing, and says how
much that is.  Parts by task, seed, method or number of workers may be measured side by side, each with results of its
own, and put together.  With `--after` the question is not what a search needs but what it has after so many whole
trainings: how good the trial is that it would choose then.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from search_curves import DEVELOPED_ON, tasks
from search_methods import METHODS
from search_report import after, left, report
from search_runs import Cell, Known, Run, known_of, run, run_on

CAP = 64
"""Whole trainings after which a run that has not reached its target is given up."""
_KEEP = 10.0
"""Seconds between two times that the results are written."""


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
    source, end = str(options.lcbench or options.curves), time.monotonic() + options.budget
    done = merged([*options.merge, *([options.results] if options.results.exists() else [])])
    missing, written = list(cells(options, frozenset(done))), time.monotonic()
    one_run, cap = (run_on, max(options.after)) if options.after else (run, options.cap)
    with ProcessPoolExecutor(options.jobs) as pool:
        known = _shared(pool, source, missing, done) if options.budget else {}
        waiting, running = iter(missing), set[Future[Run]]()
        while True:
            while len(running) < options.jobs and time.monotonic() < end and (cell := next(waiting, None)):
                running.add(pool.submit(one_run, source, cell, cap, known[cell.task]))
            if not running:
                break
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            done |= {_key(found): found for found in (future.result() for future in ended)}
            if time.monotonic() - written > _KEEP:
                _write(options.results, done)
                written = time.monotonic()
    _write(options.results, done)
    return done


def _shared(
    pool: ProcessPoolExecutor, source: str, missing: Sequence[Cell], done: Mapping[str, Run]
) -> dict[str, Known]:
    """By task, what its runs share: each computed once."""
    targets = {one["task"]: one["target"] for one in done.values()}
    methods = {cell.task: {other.method for other in missing if other.task == cell.task} for cell in missing}
    futures = {
        task: pool.submit(known_of, source, task, sorted(wanted), targets.get(task)) for task, wanted in methods.items()
    }
    return {task: future.result() for task, future in futures.items()}


def _key(one: Run) -> str:
    return Cell(one["task"], one["method"], one["workers"], one["seed"]).key


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
    parser.add_argument(
        "--after", nargs="+", type=int, help="whole trainings: what searches have then; runs go on so far"
    )
    parser.add_argument("--every", type=int, default=1, help="only every so manieth task")
    parser.add_argument("--development", action="store_true", help="the tasks on which methods were developed")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no run begins")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    results = measure(given)
    print(left(list(cells(given, frozenset(results))), results.values(), given.jobs))
    print(after(results, given.after) if given.after else report(results))
