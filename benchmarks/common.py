"""What the benchmarks share: a workload and its data, variants of a training, and children in their own processes."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa

from lowland.platform.tracking.environment import gpus
from lowland.trainers.data.manifest import Manifest, SplitInfo, TokenizerInfo
from lowland.trainers.data.shards import Row, ShardWriter

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "ray", "deepspeed", "transformers", "mlflow", "liger-kernel")


@dataclass(frozen=True)
class Workload:
    """What every variant of a comparison trains."""

    model: Mapping[str, Any]
    """Fields of a transformers LlamaConfig."""
    sequence_length: int
    dtype: Literal["bfloat16", "float32"]
    device: Literal["cuda", "cpu"]
    workers: int
    steps: int
    window: int
    """Steps between two readings of the clock; lowland's `log_every`."""
    folder: str
    """Scratch folder: data/, runs/, mlflow.db, logs/."""
    threads: int = 1
    """CPU threads per worker."""
    system_metrics: bool = True
    """Whether lowland records system metrics, as it does by default."""

    @property
    def measured_from(self) -> int:
        """The first step after the warm-up, a third of all: readings that begin before it do not count."""
        return -(-self.steps // 3)

    def measured(self, readings: Mapping[int, float]) -> list[float]:
        """The readings, by the step they end at, that lie after the warm-up."""
        return [value for step, value in sorted(readings.items()) if step - self.window >= self.measured_from]


@dataclass(frozen=True)
class Variant:
    """One way to train the workload."""

    name: str
    loop: Literal["fsdp2", "naive", "hand", "ray", "lowland"]
    """FSDP2 in plain torch; DeepSpeed as one writes it first, or with lowland's settings; these inside Ray; lowland."""
    micro_batch: int = 8
    stage: int = 2
    recompute: bool = False
    """Activations are recomputed in the backward pass."""
    compile: bool = False
    """Decoder layers are compiled."""
    fused_loss: bool = False
    """The LM head is fused with the cross-entropy."""
    bucket_elements: int = 200_000_000
    overlap: bool = True
    gradient_dtype: str = "auto"
    optimizer: str = "adamw"
    """A name in `OPTIMIZERS` of through_lowland.py; loops by hand have AdamW."""


@dataclass(frozen=True)
class Measurement:
    """What one run of a variant gave."""

    tokens_per_second: float
    """Median over the readings after the warm-up, all workers together."""
    readings: list[float]
    split: dict[str, float]
    """Seconds per step by phase."""
    memory_gib: float | None
    """Peak of rank 0's GPU since its start; None on CPUs."""
    seconds: float = 0.0
    """Of the whole run, start included."""


def write_data(folder: Path, *, rows: int, held_out: int, sequence_length: int, vocab_size: int) -> None:
    """Packed random tokens, one document per row, written as `lowland data prepare` would."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    sizes = {"train": rows, "held_out": held_out}
    splits = {name: _write_split(folder, name, n, sequence_length, vocab_size, generator) for name, n in sizes.items()}
    Manifest(
        tokenizer=TokenizerInfo(
            kind="byte", digest="0" * 64, vocab_size=vocab_size, bos_id=0, eos_id=0, pad_id=vocab_size - 1
        ),
        sequence_length=sequence_length,
        dtype="uint16",
        packing="split",
        seed=0,
        held_out=held_out / rows,
        splits=splits,
        sources=(),
        bad_rows={},
        document_lengths={},
    ).with_digest().write(folder)


def _write_split(
    folder: Path, name: str, rows: int, length: int, vocab_size: int, generator: np.random.Generator
) -> SplitInfo:
    with ShardWriter(folder, name, sequence_length=length, dtype=np.uint16, pad_id=vocab_size - 1) as writer:
        for _ in range(rows):
            tokens = generator.integers(0, vocab_size, length, dtype=np.uint32)
            writer.write(Row([tokens], [1, length], 2 * (length - 1)))
    targets = rows * (length - 1)
    return SplitInfo(
        rows=rows, tokens=rows * length, targets=targets, bytes=2 * targets, documents=rows, shards=tuple(writer.shards)
    )


def read_tokens(folder: Path) -> npt.NDArray[np.uint16]:
    """All training rows [rows, L], mapped; what a loop without lowland's data reader sees."""
    tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(folder.glob("train-*.arrow"))]
    lists = [chunk for table in tables for chunk in table.column("tokens").chunks]
    return np.concatenate([chunk.values.to_numpy().reshape(len(chunk), -1) for chunk in lists])


def run_child(
    command: Sequence[str],
    log: Path,
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    done: Callable[[], bool] = lambda: False,
) -> str | None:
    """Runs a command until it ends, `done()` holds or its time is over; nothing it started outlives the call.

    Returns:
        None if it succeeded or was done, else why not, with the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    family: set[psutil.Process] = set()
    with log.open("wb") as output:
        process = psutil.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=child_environment(environment or {})
        )
        try:
            while process.poll() is None:
                if done():
                    return None
                if time.monotonic() > deadline:
                    return f"not done after {timeout:.0f} s\n{tail(log)}"
                with suppress(psutil.NoSuchProcess):
                    family |= {process, *process.children(recursive=True)}
                time.sleep(0.5)
            return None if process.returncode == 0 else f"exit code {process.returncode}\n{tail(log)}"
        finally:
            end(family)


def end(family: Iterable[psutil.Process]) -> None:
    """Kills these processes and what they have started since, and waits until their memory is free."""
    members = set(family)
    for member in list(members):
        with suppress(psutil.NoSuchProcess):
            members |= set(member.children(recursive=True))
    for member in members:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(members, timeout=30)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This environment for a child in any folder: import paths made absolute, lowland's source among them."""
    roots = [str(ROOT / source) for source in ("platform", "trainers", "search_spaces")]
    given = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([*given, *roots])), **changes}


def script(name: str, *arguments: str) -> list[str]:
    """The command that runs a script of this folder."""
    return [sys.executable, str(ROOT / "benchmarks" / name), *arguments]


def tail(log: Path, lines: int = 25) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_json(path: Path, value: Any) -> None:
    """Writes data, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, default=asdict) + "\n", encoding="utf-8")
    temporary.rename(path)


def middle(values: Iterable[float]) -> float:
    """The median; NaN of nothing."""
    found = list(values)
    return median(found) if found else float("nan")


def gpu_name() -> str | None:
    """The first GPU's name, asked without touching it where nvidia-smi is there."""
    if found := gpus():
        return found[0]["name"]
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def circumstances(device: str, workers: int) -> str:
    """Hardware and versions, for below a table."""
    hardware = f"{workers} x {gpu_name()}" if device == "cuda" else f"{workers} workers on {_cpu()}"
    found = [f"{name} {installed(name)}" for name in PACKAGES if installed(name)]
    return f"{hardware}; Python {platform.python_version()}, {', '.join(found)}"


def installed(package: str) -> str | None:
    """A package's version; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
