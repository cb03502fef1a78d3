"""Searches of real trainings: lowland's defaults against Ray Tune with OptunaSearch and ASHAScheduler.

    python benchmarks/search_real.py --tasks digits --out real                    this machine, 8 trials at a time
    python benchmarks/search_real.py --tasks digits lm --text input.txt --out real --cpus 30 --jobs 6 --parallel 5
    python benchmarks/search_real.py --tasks cifar --images cifar10/ --out real --parallel 2     two GPUs, one a trial
    python benchmarks/search_real.py --tasks cifar --images cifar10/ --out real --parallel 4 --gpus-per-trial 0.25
    python benchmarks/search_real.py --out real --budget 0                        the tables of what is there

A search has --seconds from the start of its process: imports, Ray's start and the tracking store's are in it.  Both
sides train the same recipes on the same resources, judged by the same held-out loss after each of 17 epochs.  ASHA's
rungs are after 1, 3 and 9 of them; so are those of `promotion` with `--fixed-warmup`, which leaves the warm-up, 5 % of
every training, out of the spaces.  Otherwise its first is behind the longest warm-up, 31 %, where trials are evaluated
once more.  The stock side keeps its processes between trials (`reuse_actors`), which is not its default, and tracks
nothing; lowland's has all that `lowland tune` does.  `stopping` is `lowland tune` with that policy; `budget` is told
how long it has, less 40 s for the start; `first-6` and `first-31` first compare trials at that percentage of a training
(`--first-rung`); `random` is Tune with random search and whole trainings.  With several --jobs, searches run side by
side, each on its share of the cores; if there are too few GPUs for that, they share them.  Results are kept search by
search in OUT/results.json: called again, it goes on with what is missing.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import child_environment, circumstances, gpu_name, gpus, installed, run_child, script, write_json
from real_report import Search, losses
from real_tasks import EPOCHS, TASKS, Task, prepare, recipe, space

from lowland.trainers.errors import UserError

BEGUN = time.monotonic()
METHODS = ("lowland", "stock", "stopping", "budget", "first-6", "first-31", "random")
AROUND_SECONDS = 60.0
"""What a search takes before and after its seconds, on a machine that was used before."""

IMPORTS = """
import mlflow, optuna, ray.train.torch, ray.tune, torch, transformers
import lowland.platform.search.driver, lowland.platform.worker, lowland.trainers.fit
"""
"""Read from the disk once, before the clock of any search runs."""


@dataclass(frozen=True)
class Cell:
    """One search."""

    task: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the results, and of its folder."""
        return f"{self.task}-{self.method}-{self.seed}"


def main() -> None:
    """Runs the searches that are missing, and prints all."""
    options = arguments()
    options.out = options.out.resolve()
    results = Results(options)
    missing = [cell for cell in cells(options) if cell.key not in results.cells]
    for task in dict.fromkeys(cell.task for cell in missing):
        if options.budget > 0:
            prepare(TASKS[task], options.out / "data" / task, text=options.text, images=options.images)
    if missing and options.budget > 0:
        run_child([sys.executable, "-c", IMPORTS], options.out / "imports.txt", timeout=options.budget)
        measure(missing, results, options)
    print(losses(results.searches()))
    print(f"\n{'; '.join(dict.fromkeys(cell['machine'] for cell in results.cells.values()))}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS[:2]))
    parser.add_argument("--seeds", type=numbers, default=range(3), help="how many, or from-to")
    parser.add_argument("--seconds", type=float, default=240.0, help="of a search")
    parser.add_argument("--parallel", type=int, default=8, help="trials of a search at a time")
    parser.add_argument("--cpus-per-trial", type=int, default=1)
    parser.add_argument("--cpus", type=numbers, help="cores to use, how many or from-to; all by default")
    parser.add_argument("--gpus-per-trial", type=float, default=1.0, help="of cifar: 1, or a part of one")
    parser.add_argument("--fixed-warmup", action="store_true", help="the recipes' own for all trials")
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time")
    parser.add_argument("--text", type=Path, help="file for lm")
    parser.add_argument("--images", type=Path, help="folder with train.parquet and test.parquet of CIFAR-10 for cifar")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which nothing runs any more")
    return parser.parse_args()


def numbers(text: str) -> range:
    """`20` is the first twenty, `5-9` those from 5 to 9."""
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """All searches; those that are compared with each other follow one another."""
    for seed in options.seeds:
        for task in options.tasks:
            for method in options.methods:
                yield Cell(task, method, seed)


class Results:
    """Finished searches in a file, which a later call goes on from.

    Raises:
        SystemExit: it holds searches of a task with other settings.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._path = options.out / "results.json"
        there = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self.cells: dict[str, dict[str, Any]] = there
        now = settings(options)
        for cell in there.values():
            if options.budget > 0 and cell["task"] in options.tasks and cell["settings"] != now:
                raise SystemExit(f"{self._path}: {cell['task']} has {cell['settings']}, not {now}; give another --out")

    def add(self, cell: Cell, found: dict[str, Any], options: argparse.Namespace, machine: str) -> None:
        """Keeps a finished search."""
        self.cells[cell.key] = {**asdict(cell), "settings": settings(options), "machine": machine, **found}
        write_json(self._path, self.cells)

    def searches(self) -> list[Search]:
        """For the report."""
        return [
            Search(
                cell["task"],
                cell["method"],
                cell["seed"],
                cell["settings"]["seconds"],
                [tuple(point) for point in cell["points"]],
                cell["trials"],
                EPOCHS,
                cell.get("starts", ()),
            )
            for cell in self.cells.values()
        ]


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all searches of a task must have in common."""
    share = len(cores(options)) // options.jobs
    found = {"seconds": options.seconds, "parallel": options.parallel, "cores": share, "cpus": options.cpus_per_trial}
    found |= {"gpus": options.gpus_per_trial} if options.gpus_per_trial != 1 else {}
    return found | ({"warmup": "fixed"} if options.fixed_warmup else {})


def cores(options: argparse.Namespace) -> list[int]:
    """Those that may be used."""
    mine = sorted(os.sched_getaffinity(0))
    return [mine[i] for i in options.cpus if i < len(mine)] if options.cpus is not None else mine


def measure(missing: list[Cell], results: Results, options: argparse.Namespace) -> None:
    """Runs what is missing, as far as the time allows."""
    end = BEGUN + options.budget
    free, again = list(range(options.jobs)), list[Cell]()
    with ThreadPoolExecutor(options.jobs) as pool:
        running = dict[Future[dict[str, Any] | str], tuple[Cell, int]]()
        while True:
            while free and missing and time.monotonic() + options.seconds + AROUND_SECONDS <= end:
                cell, place = missing.pop(0), free.pop(0)
                running[pool.submit(search, cell, place, end, options)] = cell, place
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, place = running.pop(future)
                free.append(place)
                found = future.result()
                if isinstance(found, str):
                    print(f"{cell.key} failed: {found}", file=sys.stderr, flush=True)
                    missing += [cell] if cell not in again else []  # once: a busy machine may not start Ray in time
                    again.append(cell)
                    continue
                results.add(cell, found, options, machine(TASKS[cell.task], options))
                print(f"{cell.key}: {len(found['points'])} epochs, {found['trials']} trials", flush=True)


def search(cell: Cell, place: int, end: float, options: argparse.Namespace) -> dict[str, Any] | str:
    """One search in processes of its own, on its share of the cores and GPUs; why there is no result, if so."""
    task, folder = TASKS[cell.task], options.out / "searches" / f"{cell.key}-{time.time_ns()}"
    folder.mkdir(parents=True)
    data, share = options.out / "data" / task.name, settings(options)["cores"]
    order = {
        "method": cell.method,
        "seed": cell.seed,
        "seconds": options.seconds,
        "parallel": options.parallel,
        "recipe": recipe(
            task, data, folder / "runs", cell.seed, cpus=options.cpus_per_trial, gpus=options.gpus_per_trial
        ),
        "space": space(task, warmup=not options.fixed_warmup),
        "result": str(folder / "found.json"),
        "cores": cores(options)[place * share : (place + 1) * share],
    }
    write_json(folder / "order.json", order)
    visible = ",".join(map(str, gpus_of(place, options))) if task.on_gpu else ""
    paths = f"{child_environment({})['PYTHONPATH']}{os.pathsep}{Path(__file__).parent}"
    problem = run_child(
        script("real_searches.py", str(folder / "order.json")),
        folder / "log.txt",
        timeout=end - time.monotonic(),
        environment={"CUDA_VISIBLE_DEVICES": visible, "PYTHONPATH": paths},
    )
    return problem or json.loads((folder / "found.json").read_text(encoding="utf-8"))


def gpus_of(place: int, options: argparse.Namespace) -> list[int]:
    """Those of the search at a place: as many as its trials need, from the first again where there are no more."""
    there = max(1, len(gpus()))
    needed = min(there, math.ceil(options.parallel * options.gpus_per_trial - 1e-9))
    return [(place * needed + i) % there for i in range(needed)]


def machine(task: Task, options: argparse.Namespace) -> str:
    """Hardware and versions."""
    parts = f"{gpu_name()}, {options.gpus_per_trial:g} of one a trial, " if task.on_gpu else ""
    shares = f"{settings(options)['cores']} cores a search, {options.jobs} at a time"
    return f"{task.name}: {parts}{shares}; {circumstances('cpu', options.parallel)}, optuna {installed('optuna')}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
