"""Golden trajectories: `step loss` lines of fixed short trainings.

They change when the training changes: its data order, initialisation, mathematics or schedule.  To
write them anew, which is a decision and not a repair: `cd tests && python -m support.golden`.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from support.corpus import prepared
from support.training import ADAMW, ADATAMW, TORCH, outcome

FOLDER = Path(__file__).parent.parent / "golden"
RUNS: dict[str, dict[str, Any]] = {"llama-adamw": ADAMW, "llama-adatamw": ADATAMW}


def machine() -> str:
    """What float rounding depends on: torch, its vector code and the processor its libraries see."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = model[0].partition(":")[2].strip() if model else "unknown"
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {processor}"


def trajectory(name: str, folder: Path) -> dict[int, float]:
    """Losses by step of a golden run, by one thread."""
    with _one_thread():
        data = prepared(folder / "data", seed=11)
        return outcome(data, folder / name, {**TORCH, **RUNS[name], "length": "20 steps"}).losses


def read(name: str) -> tuple[str, dict[int, float]]:
    """The machine that wrote a golden file, and its losses by step."""
    first, *lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return first.removeprefix("# "), {int(step): float(loss) for step, loss in map(str.split, lines)}


def write(name: str) -> None:
    """Writes a golden file anew."""
    with tempfile.TemporaryDirectory() as folder:
        losses = trajectory(name, Path(folder))
    lines = [f"# {machine()}", *(f"{step} {loss!r}" for step, loss in losses.items())]
    (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for run in RUNS:
        write(run)
