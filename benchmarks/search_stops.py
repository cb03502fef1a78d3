"""200 cooperative stops in a row, and what the processes of a search hold before and after them.

    python benchmarks/search_stops.py --out stops

One search with one group of workers: each segment of a trial trains, evaluates, saves and ends by itself, and the next
one begins in the same processes.  Every so many stops the threads, open files and memory of all its processes are read,
and the placement groups and actors of its cluster, which has no dashboard.  What grows from the first reading to the
last is a leak.
"""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from common import circumstances, end, tail, write_json
from faults_checks import written
from faults_cluster import Nodes, held, title
from rich.console import Console
from rich.table import Table
from search_faults import prepare

ROLES = {
    "driver": "lowland.platform.cli",
    "worker": "RayTrainWorker",
    "controller": "TrainController",
    "waiting": "ImplicitFunc",
    "dispatcher": "Dispatcher",
}
GCS = re.compile(r"--gcs-address=(\S+)")


@dataclass(frozen=True)
class Reading:
    """What there is after some stops."""

    stops: int
    held: dict[str, int]
    """Of the cluster: placement groups, actors, CPUs."""
    processes: int
    """Of the search, those of Ray's own among them."""
    roles: dict[str, tuple[int, int, float]]
    """Threads, open files, and MB that nobody shares, of all processes of a role."""


def main() -> None:
    """Searches, reads, and prints."""
    options = arguments()
    options.out = options.out.resolve()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    prepare(options.out, options)
    nodes = Nodes(options.out, 1, 0)  # for its token: the search starts its own cluster
    driver = start(nodes, options)
    try:
        readings = watch(driver, nodes, options)
        left = [title(process) for process in nodes.processes()]
    finally:
        end(nodes.processes())
    write_json(options.out / "readings.json", readings)
    show(readings, left)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; what is in it is removed")
    parser.add_argument("--trials", type=int, default=140, help="half as many stops again come from promotions")
    parser.add_argument("--every", type=int, default=20, help="stops between two readings")
    parser.add_argument("--workers", type=int, default=1, help="of a trial")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a step waits")
    return parser.parse_args()


def start(nodes: Nodes, options: argparse.Namespace) -> psutil.Popen:
    """The driver."""
    entry = [sys.executable, "-c", "from lowland.platform.cli import main; main()", "tune"]
    command = [*entry, str(options.out / "recipe.yaml"), "--space", str(options.out / "space.yaml")]
    command += ["--sampler", "random", "--trials", str(options.trials), "--parallel", "1"]
    with (options.out / "driver.log").open("wb") as output:
        return psutil.Popen(command, stdout=output, stderr=output, env=nodes.environment())


def watch(driver: psutil.Popen, nodes: Nodes, options: argparse.Namespace) -> list[Reading]:
    """Readings until the search has ended."""
    readings: list[Reading] = []
    journal = options.out / "runs" / "search" / "trials.journal"
    while driver.poll() is None:
        stops = len(written(journal)[0])
        if stops >= options.every * (len(readings) + 1):
            with suppress(psutil.Error):
                readings.append(read(stops, nodes.processes()))
                print(f"{stops} stops", flush=True)
        time.sleep(1.0)
    if driver.returncode != 0:
        sys.exit(tail(options.out / "driver.log"))
    return readings


def read(stops: int, processes: Sequence[psutil.Process]) -> Reading:
    """One reading."""
    titles = {process: title(process) for process in processes}
    address = next(found[1] for text in titles.values() if (found := GCS.search(text)))
    roles = {}
    for role, word in ROLES.items():
        own = [process for process, text in titles.items() if word in text]
        memory = sum(process.memory_full_info().uss for process in own) / 1e6
        roles[role] = (sum(p.num_threads() for p in own), sum(p.num_fds() for p in own), round(memory, 1))
    return Reading(stops, held(address), len(titles), roles)


def show(readings: Sequence[Reading], left: Sequence[str]) -> None:
    """The table: a line per reading, per role threads / open files / MB."""
    table = Table("stops", "processes", "groups", "actors", *ROLES, title="threads / open files / MB")
    for reading in readings:
        cells = (" / ".join(map(str, reading.roles[role])) for role in ROLES)
        counts = (reading.stops, reading.processes, reading.held["placement groups"], reading.held["actors"])
        table.add_row(*map(str, counts), *cells)
    console = Console(width=150)
    console.print(table)
    console.print(f"after the end: {len(left)} processes{''.join(f', {text[:80]}' for text in left)}", soft_wrap=True)
    console.print(circumstances("cpu", 1), soft_wrap=True)


if __name__ == "__main__":
    main()
