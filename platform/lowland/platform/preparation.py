"""Data preparation on Ray: work units as tasks, with progress."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lowland.platform.cluster import connect
from lowland.trainers.data.assembly import Prepared
from lowland.trainers.data.plan import PrepareSettings
from lowland.trainers.data.prepare import UnitMap, UnitTask, one_by_one
from lowland.trainers.data.prepare import prepare as prepare_by
from lowland.trainers.data.unit import UnitResult
from lowland.trainers.data.units import Unit

_UNITS_PER_CPU = 2
"""Tasks in flight: one that runs and one that waits, so that no CPU idles while results are collected."""

OnProgress = Callable[[int, int], None]
"""Called with the bytes of the inputs that are done, and of all of them."""


def prepare(
    settings: PrepareSettings,
    out: str | Path,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    address: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Prepared:
    """Prepares data in parallel; the result does not depend on how parallel.

    Args:
        settings: sources, tokenizer, packing, split.
        out: folder to write; on a cluster of several machines, on storage that all of them share.
        overwrite: replace prepared data that is there.
        workers: tasks at a time; None is one per CPU of the cluster, 0 works in this process without Ray.
        address: Ray cluster to join; None starts one here, unless there is only one unit of work.
        on_progress: see `OnProgress`.

    Raises:
        DataError: see `lowland.trainers.data.prepare.prepare`.
        UserError: the cluster cannot be joined.
    """

    def map_units(task: UnitTask, units: Sequence[Unit]) -> Generator[UnitResult]:
        in_process = workers == 0 or (len(units) == 1 and address is None)
        mapped: UnitMap = one_by_one if in_process else _on_ray(workers, address)
        done, total = 0, sum(unit.size for unit in units)
        on_progress(done, total)
        for unit, result in zip(units, mapped(task, units), strict=True):
            yield result
            done += unit.size
            on_progress(done, total)

    return prepare_by(settings, out, overwrite=overwrite, map_units=map_units)


def _on_ray(workers: int | None, address: str | None) -> UnitMap:
    def map_units(task: UnitTask, units: Sequence[Unit]) -> Generator[UnitResult]:
        with connect(address, cpus=workers, gpus=0):
            yield from _in_flight(task, units, workers)

    return map_units


def _in_flight(task: UnitTask, units: Sequence[Unit], workers: int | None) -> Generator[UnitResult]:
    """Results in the order of the units, with a bounded number of tasks submitted."""
    import ray

    run = ray.remote(num_cpus=1)(_run)
    shared = ray.put(task)
    at_a_time = workers or _UNITS_PER_CPU * int(ray.cluster_resources().get("CPU", 1))
    waiting = iter(units)
    pending = deque(run.remote(shared, unit) for unit in islice(waiting, at_a_time))
    try:
        while pending:
            yield _result(pending[0])
            pending.popleft()
            pending.extend(run.remote(shared, unit) for unit in islice(waiting, 1))
    finally:
        for reference in pending:
            ray.cancel(reference)


def _run(task: UnitTask, unit: Unit) -> UnitResult:
    return task(unit)


def _result(reference: Any) -> UnitResult:
    """Waits for a task; what it raised is raised as it was, without Ray's wrapping."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        result: UnitResult = ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    return result
