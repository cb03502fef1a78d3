"""Do the methods help?  Each against its base, at an equal tuning budget, over seeds, with intervals.

    python benchmarks/optimizer_quality.py --text input.txt --images cifar10/ --jobs 12 --out quality.json
    python benchmarks/optimizer_quality.py --device cpu --tiny                    a dry run of every method
    python benchmarks/optimizer_quality.py prepare cifar10/ cifar.npz             decodes images once

Every method tries five learning rates with seed 0, and trains with the best of them on seeds 1, 2, ...; a seed fixes
initial weights, batches and augmentation, so that differences to the base are taken seed by seed.  Learning rates are
chosen on one part of the held-out data, and what is reported is another.  Trainings run in parallel in --jobs
processes on one device.  A call goes on from the finished trainings in --out.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from quality_methods import ENTRIES, Entry, train
from quality_statistics import COLUMNS, Cell, Result, Row, Store, markdown, next_cells, row, texts
from quality_tasks import TASKS, Images, Task, Text, prepare, problem, tiny

Plan = list[tuple[Task, str]]


class Worker:
    """What a process keeps between trainings."""

    device: torch.device
    data: dict[str, Path]
    problems: dict[str, Text | Images] = {}


def start_worker(device: str, data: dict[str, Path]) -> None:
    """Makes a process ready."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    Worker.device, Worker.data = torch.device(device), data


def train_cell(task: Task, cell: Cell) -> Result:
    """Trains one cell; a failure is a result too."""
    entry, begun = ENTRIES[cell.method], time.monotonic()
    try:
        if task.name not in Worker.problems:
            Worker.problems[task.name] = problem(task, Worker.data[task.data], Worker.device)
        return train(entry, task, Worker.problems[task.name], cell, Worker.device)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return Result(None, None, None, entry.steps(task), 0, time.monotonic() - begun, message)


def main() -> int:
    """Reads arguments, trains, prints."""
    if sys.argv[1:2] == ["prepare"]:
        return _prepare(sys.argv[2:])
    options = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        data = {kind: path for kind in ("text", "images") if (path := _arrays(options, kind, Path(folder)))}
        plan = _plan(options, data)
        settings = {task.name: _settings(task, data[task.data]) for task, _ in plan}
        store = Store(options.out, settings)
        finished = _run(plan, store, options, data)
    rows = _rows(plan, store)
    store.close(rows, _circumstances(options))
    _print(rows, as_markdown=options.markdown)
    for cell, result in store.results.items():
        if result.error:
            print(f"{cell.task} {cell.method}: {result.error}")
    if not finished:
        print("the budget was spent before all was trained; call again with the same --out")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file; the standard library's sources by default")
    parser.add_argument(
        "--images", type=Path, help="folder of Parquet files, or .npz; scikit-learn's digits by default"
    )
    parser.add_argument("--tasks", default="*", help=f"patterns of {', '.join(TASKS)}; by default all")
    parser.add_argument("--methods", default="*", help="names or patterns, separated by commas; bases are added")
    parser.add_argument("--seeds", type=int, default=5, help="seeds that are reported")
    parser.add_argument("--steps", type=int, help="steps of each training; by default the task's own")
    parser.add_argument("--jobs", type=int, default=1, help="processes that train at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no training starts")
    parser.add_argument("--tiny", action="store_true", help="a dry run in seconds")
    parser.add_argument("--out", type=Path, help="JSON file that finished trainings are kept in and taken from")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args()


def _prepare(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="optimizer_quality.py prepare", description=prepare.__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    prepare(options.source, "images" if options.source.is_dir() else "text", options.target)
    return 0


def _arrays(options: argparse.Namespace, kind: str, folder: Path) -> Path | None:
    """The file of arrays of a kind of data, made if need be; None if there is no such data."""
    source: Path | None = getattr(options, kind)
    if source is not None and source.suffix == ".npz":
        return source
    target = folder / f"{kind}.npz"
    if prepare(source, kind, target):
        return target
    print(f"{kind}: left out, since neither --{kind} is given nor scikit-learn installed")
    return None


def _plan(options: argparse.Namespace, data: dict[str, Path]) -> Plan:
    """The tasks and methods to train, bases first."""
    absent = sorted(name for name, entry in ENTRIES.items() if not entry.rows_exist)
    if absent:
        print(f"not in this version of lowland: {', '.join(absent)}")
    found: Plan = []
    for task in TASKS.values():
        if task.data not in data or not _matches(task.name, options.tasks):
            continue
        entries = {name: e for name, e in ENTRIES.items() if e.rows_exist and task.name in e.tasks}
        asked = [name for name in entries if _matches(name, options.methods)]
        bases = {base for name in asked if (base := entries[name].base)}
        shaped = _shaped(task, options)
        found += [(shaped, name) for name in sorted({*asked, *bases}, key=lambda name: _order(entries, name))]
    return found


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatch(name, pattern.strip()) for pattern in patterns.split(","))


def _order(entries: dict[str, Entry], name: str) -> tuple[bool, int]:
    return entries[name].base is not None, list(entries).index(name)


def _shaped(task: Task, options: argparse.Namespace) -> Task:
    fields = asdict(tiny(task) if options.tiny else task)
    return Task(**(fields | {"steps": options.steps or fields["steps"]}))


def _settings(task: Task, data: Path) -> dict[str, Any]:
    return {**asdict(task), "data_digest": sha256(data.read_bytes()).hexdigest()[:16]}


def _run(plan: Plan, store: Store, options: argparse.Namespace, data: dict[str, Path]) -> bool:
    """Trains what is missing, in the plan's order; whether all is done."""
    begun, longest = time.monotonic(), 0.0
    running: dict[Future[Result], Cell] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, start_worker, (options.device, data)) as pool:
        while True:
            in_time = time.monotonic() - begun + longest < options.budget
            for task, cell in _waiting(plan, store, options.seeds, set(running.values())):
                if not in_time or len(running) >= options.jobs:
                    break
                running[pool.submit(train_cell, task, cell)] = cell
            if not running:
                return not any(_waiting(plan, store, options.seeds, set()))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, result = running.pop(future), future.result()
                store.add(cell, result)
                longest = max(longest, result.seconds)
                value = "diverged" if result.quality is None else f"{result.tuning:.4g}"
                print(
                    f"{time.monotonic() - begun:6.0f} s  {cell.task} {cell.method} rate {cell.rate:.3g} "
                    f"seed {cell.seed}: {result.error or value} in {result.seconds:.1f} s",
                    flush=True,
                )


def _waiting(plan: Plan, store: Store, seeds: int, running: set[Cell]) -> Iterator[tuple[Task, Cell]]:
    for task, name in plan:
        for cell in next_cells(task.name, name, ENTRIES[name].centre(task), seeds, store.results, larger=task.larger):
            if cell not in running:
                yield task, cell


def _rows(plan: Plan, store: Store) -> list[Row]:
    found = (row(task.name, name, ENTRIES[name].base, store.results, larger=task.larger) for task, name in plan)
    return [line for line in found if line is not None]


def _circumstances(options: argparse.Namespace) -> dict[str, Any]:
    cuda = options.device.startswith("cuda")
    device = torch.cuda.get_device_name() if cuda else "CPU"
    return {"device": device, "torch": torch.__version__, "jobs": options.jobs}


def _print(rows: Sequence[Row], *, as_markdown: bool) -> None:
    if as_markdown:
        print(markdown(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS)
    for line in rows:
        table.add_row(*texts(line))
    Console(width=None if sys.stdout.isatty() else 180).print(table)


if __name__ == "__main__":
    sys.exit(main())
