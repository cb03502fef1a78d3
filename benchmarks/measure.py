"""Measures one variant in a process tree of its own."""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

from common import Measurement, Variant, Workload, run_child, script, write_json
from through_lowland import Recorded, write_recipe


class MeasurementError(RuntimeError):
    """A variant could not be measured; the message holds the end of its output."""


def measure(workload: Workload, variant: Variant, turn: int, *, timeout: float, whole: bool) -> Measurement:
    """Trains the variant once.

    Args:
        workload: what is trained.
        variant: how.
        turn: tells its runs apart.
        timeout: seconds after which it is given up.
        whole: lets lowland's evaluation and checkpoint at the end run as well, which are not measured.

    Raises:
        MeasurementError: it failed or took too long.
    """
    begun = time.monotonic()
    run = _with_lowland if variant.loop == "lowland" else _by_hand
    measurement = run(workload, variant, f"{variant.name}-{turn}", timeout, whole)
    return replace(measurement, seconds=time.monotonic() - begun)


def _with_lowland(workload: Workload, variant: Variant, name: str, timeout: float, whole: bool) -> Measurement:
    recorded = Recorded(workload, name)
    command = script("through_lowland.py", str(write_recipe(workload, variant, name)))
    # Ray calls a worker's threads its CPUs only where this is unset.
    threads = {"OMP_NUM_THREADS": str(workload.threads)}
    done = (lambda: False) if whole else recorded.finished
    error = run_child(command, _log(workload, name), timeout=timeout, environment=threads, done=done)
    folder = Path(workload.folder, "runs", name)
    if error is not None:
        raise MeasurementError(error + worker_logs(folder))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return recorded.measurement()


def worker_logs(folder: Path) -> str:
    """The end of what rank 0 printed."""
    logs = sorted(folder.glob("logs/*rank-0.log"))
    return "".join(f"\n{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


def _by_hand(workload: Workload, variant: Variant, name: str, timeout: float, whole: bool) -> Measurement:
    job, result = (Path(workload.folder, f"{name}.{kind}.json") for kind in ("job", "result"))
    write_json(job, {"workload": asdict(workload), "variant": asdict(variant)})
    threads = {"OMP_NUM_THREADS": str(workload.threads)}
    command = script("through_ray.py" if variant.loop == "ray" else "baselines.py", str(job), str(result))
    error = run_child(command, _log(workload, name), timeout=timeout, environment=threads, done=result.exists)
    if error is not None:
        raise MeasurementError(error)
    return Measurement(**json.loads(result.read_text(encoding="utf-8")))


def _log(workload: Workload, name: str) -> Path:
    return Path(workload.folder, "logs", f"{name}.log")
