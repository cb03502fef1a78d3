"""Seconds from the command to the first training step, and where they go.

    python benchmarks/startup.py                      cold (Ray starts with the command), then on a live cluster
    python benchmarks/startup.py --device cuda --workers 2 --large

Each case is repeated and the median given.  A cold run starts Ray on this machine; a live one joins a head that was
started before, through RAY_ADDRESS.  The phases are those the run itself records in MLflow as `startup/*_seconds`: each
is the time since the one before, the first since the process began.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from common import (
    Variant,
    Workload,
    child_environment,
    circumstances,
    end,
    free_port,
    middle,
    run_child,
    script,
    tail,
    write_data,
    write_json,
)
from gpu_throughput import LLAMA_1B
from measure import worker_logs
from overhead import SMALL
from rich.console import Console
from rich.table import Table
from through_lowland import Recorded, write_recipe

from lowland.platform.startup import PHASES

PORTS = {"node-manager": 0, "object-manager": 1, "min-worker": 10, "max-worker": 99}
"""Offsets of the live cluster's ports from --ports."""


def main() -> None:
    """Measures and prints."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="startup-") as scratch, ExitStack() as stack:
        workload = make_workload(options, Path(scratch))
        write_data(
            Path(scratch, "data"),
            rows=256,
            held_out=8,
            sequence_length=workload.sequence_length,
            vocab_size=workload.model["vocab_size"],
        )
        cases = {"cold": repeat(options, workload, "cold", {})}
        address = stack.enter_context(live_cluster(options, Path(scratch)))
        cases["live"] = repeat(options, workload, "live", {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"})
    show(cases, options)
    if options.out:
        write_json(options.out, {"cases": cases, "circumstances": circumstances(options.device, options.workers)})


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="a Llama of 0.95 B parameters instead of 1 M")
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers")
    parser.add_argument("--ports", type=int, default=23000, help="first of 100 ports for the live cluster")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one run may take")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


def make_workload(options: argparse.Namespace, folder: Path) -> Workload:
    """A training of two steps."""
    model = LLAMA_1B if options.large else SMALL
    return Workload(
        model=model,
        sequence_length=model["max_position_embeddings"],
        dtype="bfloat16" if options.device == "cuda" else "float32",
        device=options.device,
        workers=options.workers,
        steps=2,
        window=1,
        folder=str(folder),
    )


def repeat(
    options: argparse.Namespace, workload: Workload, case: str, environment: Mapping[str, str]
) -> list[dict[str, float]]:
    """Each run's seconds by phase."""
    variant = Variant("", "lowland", micro_batch=1, bucket_elements=10_000_000, compile=options.compile)
    found = []
    for turn in range(options.repeats):
        name = f"{case}-{turn}"
        recipe, log = write_recipe(workload, variant, name), Path(workload.folder, "logs", f"{name}.log")
        command = script("through_lowland.py", str(recipe))
        error = run_child(command, log, timeout=options.timeout, environment=environment)
        if error is not None:
            sys.exit(f"{name}: {error}{worker_logs(Path(workload.folder, 'runs', name))}")
        found.append(Recorded(workload, name).startup())
        print(f"{name}: {found[-1]['total']:.1f} s", flush=True)
    return found


@contextmanager
def live_cluster(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """A Ray head of our own on private ports; gives its address."""
    port = free_port()
    ports = [f"--{name}-port={options.ports + offset}" for name, offset in PORTS.items()]
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--port={port}",
        *ports,
        f"--num-cpus={max(os.cpu_count() or 1, options.workers + 1)}",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--object-store-memory=268435456",
        f"--temp-dir={folder / 'ray'}",
    ]
    log = folder / "head.log"
    with log.open("wb") as output:
        head = psutil.Popen(command, stdout=output, stderr=output, env=child_environment({"RAY_AUTH_MODE": "disabled"}))
        try:
            wait_for(head, log, f"127.0.0.1:{port}")
            yield f"127.0.0.1:{port}"
        finally:
            end({head})


def wait_for(head: psutil.Popen, log: Path, address: str, seconds: float = 60) -> None:
    """Waits until the head says that it runs."""
    deadline = time.monotonic() + seconds
    while "Ray runtime started" not in tail(log, 200):
        if head.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"no Ray head at {address}:\n{tail(log)}")
        time.sleep(0.2)


def show(cases: Mapping[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Medians by phase."""
    table = Table("seconds", *cases, title=f"start-up, median of {options.repeats}")
    for phase in (*PHASES, "total"):
        table.add_row(phase, *(f"{middle(run[phase] for run in runs if phase in run):.1f}" for runs in cases.values()))
    console = Console(width=100)
    console.print(table)
    console.print(circumstances(options.device, options.workers), soft_wrap=True)


if __name__ == "__main__":
    main()
