"""What recording metrics costs a training: on its own thread, and by the thread that sends them.

    python benchmarks/tracking_cost.py [--seconds 1] [--pairs 30]

Three questions, each answered with 12 metrics at *every* step (a recipe's default is every tenth):

- How long does `MetricWriter.log` hold the training thread?
- How much slower is a CPU-bound step while the thread sends to SQLite or to an MLflow server?  Short blocks of steps
  with and without recording alternate in one process; the ratio is taken within each pair.  The CPU time of the
  thread, which other processes do not disturb, bounds what it can take from the training through the interpreter lock.
- What happens when the server is killed: how long is the longest step, and what became of the metrics?

The step is a small network's forward and backward pass on one core.
"""

import argparse
import os
import platform
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lowland.platform.runs import RunFolder
from lowland.platform.tracking.delivery import deliver_spools
from lowland.platform.tracking.store import check_store, connect
from lowland.platform.tracking.ui import free_port, serve
from lowland.platform.tracking.writer import MetricWriter

METRICS = {f"train/metric_{index}": 0.5 + index for index in range(12)}


@dataclass(frozen=True)
class Block:
    """Steps done in a stretch of time."""

    steps: int
    seconds: float
    slowest: float
    """Longest step in seconds."""

    @property
    def step_seconds(self) -> float:
        """Mean duration of a step."""
        return self.seconds / self.steps


class Training:
    """A CPU-bound training step of a few milliseconds."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        width = 256
        layers = [torch.nn.Linear(width, width) for _ in range(12)]
        self._model = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.GELU())))
        self._optimizer = torch.optim.AdamW(self._model.parameters(), foreach=False)
        self._inputs = torch.randn(64, width)
        self._step = 0

    def run(self, seconds: float, log: Callable[[int], None]) -> Block:
        """Trains for so many seconds, calling `log` after each step."""
        start = last = time.perf_counter()
        steps, slowest = 0, 0.0
        while last - start < seconds:
            self._model(self._inputs).square().mean().backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._step += 1
            log(self._step)
            now = time.perf_counter()
            steps, slowest, last = steps + 1, max(slowest, now - last), now
        return Block(steps, last - start, slowest)


class Stage:
    """A database with a run in it, and run folders to write from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = f"sqlite:///{folder / 'mlflow.db'}"
        self._experiment = check_store(self.database, "benchmark")
        self._client = connect(self.database)

    def new_run(self) -> str:
        """Id of a new MLflow run."""
        return str(self._client.create_run(self._experiment).info.run_id)

    def writer(self, uri: str, run_id: str, flush_seconds: float = 2.0) -> tuple[MetricWriter, RunFolder]:
        """A writer to the run, as rank 0 has it."""
        folder = RunFolder.open(str(self.folder), run_id)
        folder.create()
        return MetricWriter(uri, run_id, folder, "rank0", flush_seconds), folder

    def stored(self, run_id: str) -> int:
        """Points of the first metric that the database holds."""
        return len(self._client.get_metric_history(run_id, next(iter(METRICS))))


def nothing(step: int) -> None:
    """Records nothing."""


def call_durations(log: Callable[[int], None], calls: int = 3000) -> list[float]:
    """Microseconds of single calls, about a thousand a second, sorted."""
    durations = []
    for step in range(1, calls + 1):
        start = time.perf_counter_ns()
        log(step)
        durations.append((time.perf_counter_ns() - start) / 1000)
        time.sleep(0.001)
    return sorted(durations)


def log_cost(stage: Stage) -> list[tuple[str, str]]:
    """How long calls of `log` take while the thread sends; beside an empty call, which the system delays too."""
    writer, _ = stage.writer(stage.database, stage.new_run())
    writer.log(0, METRICS)
    time.sleep(5)  # the thread has connected
    columns = [call_durations(lambda step: writer.log(step, METRICS)), call_durations(nothing)]
    writer.close(120)
    places = {"median": 0.5, "99 %": 0.99, "longest": 1.0}
    return [
        (
            f"one call of log / an empty call, {name}",
            " / ".join(f"{c[int(at * (len(c) - 1))]:.1f}" for c in columns) + " µs",
        )
        for name, at in places.items()
    ]


def first_log(uri: str, run_id: str, storage: str, seconds: float) -> tuple[float, float]:
    """Seconds of training lost, once, while the thread imports mlflow and connects, and the CPU time of that.

    Run in a fresh process, where nothing has imported mlflow.
    """
    torch.set_num_threads(1)
    training = Training()
    training.run(1.0, nothing)
    folder = RunFolder.open(storage, run_id)
    folder.create()
    writer = MetricWriter(uri, run_id, folder, "rank0", flush_seconds=3600)
    bare = training.run(seconds, nothing)
    writer.log(0, METRICS)
    recorded = training.run(2 * seconds, nothing)
    cpu = thread_cpu(writer)
    writer.close(120)
    return recorded.seconds - recorded.steps * bare.step_seconds, cpu


def thread_cpu(writer: MetricWriter) -> float:
    """CPU seconds that the writer's thread has used."""
    (thread,) = (thread for thread in threading.enumerate() if thread is writer._thread)
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))


def in_fresh_process(stage: Stage, seconds: float) -> tuple[float, float]:
    """`first_log` where nothing has imported mlflow yet."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(first_log, stage.database, stage.new_run(), str(stage.folder), seconds).result()


def paired(stage: Stage, uri: str, training: Training, seconds: float, pairs: int) -> list[tuple[str, str]]:
    """Steps with recording against steps without."""
    writer, _ = stage.writer(uri, stage.new_run(), flush_seconds=seconds / 4)
    training.run(10.0, lambda step: writer.log(step, METRICS))  # the first connection is not what is asked
    bare: list[Block] = []
    recorded: list[Block] = []
    cpu = thread_cpu(writer)
    for pair in range(pairs):
        for with_log in (False, True) if pair % 2 else (True, False):
            log = (lambda step: writer.log(step, METRICS)) if with_log else nothing
            (recorded if with_log else bare).append(training.run(seconds, log))
            time.sleep(seconds)  # the thread sends the rest: the next block starts with an idle one
    cpu = thread_cpu(writer) - cpu
    if left := writer.close(120):
        raise RuntimeError(f"{left} points were not delivered")
    ratios = [with_log.step_seconds / without.step_seconds for with_log, without in zip(recorded, bare, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    longest = [max(1000 * block.slowest for block in blocks) for blocks in (recorded, bare)]
    steps = sum(block.steps for block in recorded)
    return [
        ("bare step", f"{1000 * statistics.median(block.step_seconds for block in bare):.2f} ms"),
        ("CPU time of the thread per recorded step", f"{1000 * cpu / steps:.2f} ms"),
        ("recorded / bare step, median (quartiles)", f"{middle:.3f} ({low:.3f} to {high:.3f})"),
        ("longest recorded / bare step", f"{longest[0]:.0f} / {longest[1]:.0f} ms"),
    ]


def killed(stage: Stage, training: Training, seconds: float) -> list[tuple[str, str]]:
    """Kills the server in the middle of a training."""
    run_id = stage.new_run()
    port = free_port(43000)
    writer, folder = stage.writer(f"http://127.0.0.1:{port}", run_id)
    logged = 0

    def log(step: int) -> None:
        nonlocal logged
        writer.log(step, METRICS)
        logged += 1

    with serve(stage.database, port) as process:
        training.run(seconds, log)
        before = training.run(seconds, log)
        os.killpg(process.pid, signal.SIGKILL)
    after = training.run(2 * seconds, log)
    undelivered = writer.close(10)
    delivered = deliver_spools(folder, stage.database, run_id)
    stored = stage.stored(run_id)
    return [
        ("step before / after the kill", f"{1000 * before.step_seconds:.2f} / {1000 * after.step_seconds:.2f} ms"),
        ("longest step before / after", f"{1000 * before.slowest:.1f} / {1000 * after.slowest:.1f} ms"),
        ("kept in the run folder at the end", f"{undelivered} points"),
        ("sent from there by the next attempt", f"{delivered} points"),
        ("steps recorded / steps in the store", f"{logged} / {stored}"),
    ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a block of steps")
    parser.add_argument("--pairs", type=int, default=30, help="pairs of blocks for each store")
    options = parser.parse_args()
    torch.set_num_threads(1)
    training = Training()
    training.run(1.0, nothing)
    table = Table("what", "result", title="cost of recording 12 metrics at every step")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stage = Stage(Path(folder))
        rows = log_cost(stage)
        lost, cpu = in_fresh_process(stage, 8.0)
        rows.append(("training lost to mlflow's import, once / its CPU time", f"{lost:.1f} / {cpu:.1f} s"))
        port = free_port(43500)
        stack.enter_context(serve(stage.database, port))
        for name, uri in (("SQLite", stage.database), ("MLflow server", f"http://127.0.0.1:{port}")):
            measured = paired(stage, uri, training, options.seconds, options.pairs)
            rows += [(f"{name}: {what}", text) for what, text in measured]
        stack.close()
        rows += [(f"server killed: {what}", text) for what, text in killed(stage, training, 5.0)]
    for row in rows:
        table.add_row(*row)
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__} (1 thread), mlflow {version('mlflow')}; load at the end {os.getloadavg()[0]:.1f}; "
        f"{options.pairs} pairs of {options.seconds:g} s"
    )


if __name__ == "__main__":
    main()
