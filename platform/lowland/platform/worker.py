"""What runs on each Ray worker: from Ray's context to `lowland.trainers.fit`.

From `fit` down nothing knows Ray.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.platform.hub_data import require_settled
from lowland.platform.recipe import ImageClassificationRecipe, Recipe, read_recipe
from lowland.platform.runs import RunFolder

if TYPE_CHECKING:
    import torch

    from lowland.platform.ray_reader import RayReader

REPORT_SECONDS = 10.0
NEEDED = ("mlflow", "lowland.platform.board", "lowland.platform.tracking.system", "lowland.trainers.fit")
"""Modules that take long to import; below `fit` is all of torch, and of the tasks."""


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One rank of a training; Ray keeps rank 0's answer.

    Args:
        task: what `train_rank` takes.

    Returns:
        `FitResult` as data.
    """
    from ray.train import get_context

    try:
        return train_rank(task)
    except Exception as error:
        _report(error, get_context().get_world_rank(), log_of(task), task["board"])
        raise


def make_ready(device: "torch.device") -> None:
    """Imports what trainings need and touches the GPU: what waits for its first training has nothing else to do.

    What is imported by then is no garbage: the collection after each training passes it over.
    """
    import gc
    from importlib import import_module

    import torch

    from lowland.platform.tracking.store import prepare_environment

    prepare_environment()
    for name in NEEDED:
        import_module(name)
    torch.zeros(1, device=device)
    gc.freeze()


def train_rank(task: dict[str, Any]) -> dict[str, Any]:
    """One rank of a training; whatever it prints goes to `log_of(task)`.

    Args:
        task: `recipe` (a recipe as data), `run_id`, `tracking_uri`, `created`, `attempt`, `times`, `board`, and
            `until` (numerator and denominator of `fit`'s) if it is not to be trained to its end.

    Returns:
        `FitResult` as data, and `startup`, the seconds from this call to the first step.
    """
    entered = time.time()
    recipe = read_recipe(task["recipe"])
    require_settled(recipe)
    folder = RunFolder.open(recipe.storage, recipe.name)
    with ExitStack() as stack:
        stack.enter_context(_output_to(folder, log_of(task).rpartition("/")[2]))
        return _train(recipe, folder, task, entered, stack)


def log_of(task: dict[str, Any]) -> str:
    """Where this rank's output of a training is."""
    from ray.train import get_context

    recipe = task["recipe"]
    uri = RunFolder.open(recipe["storage"], recipe["name"]).uri
    return f"{uri}/logs/attempt-{task['attempt']}-rank-{get_context().get_world_rank()}.log"


def _report(error: Exception, rank: int, log: str, board: Any) -> None:
    """Tells the board of an error that a restart would only repeat; it arrives before Ray hears of the error.

    The other ranks need not have met it and may wait for this one: Ray ends them when this one raises.
    """
    import ray
    import torch.distributed as dist

    from lowland.platform.failures import not_repeated

    if not dist.is_initialized():  # another worker died and Ray took the process group away: whatever that led to
        return
    failure = not_repeated(error, rank, log)
    if failure is not None:
        with suppress(ray.exceptions.RayError):
            ray.get(board.fail.remote(failure), timeout=REPORT_SECONDS)


def _train(recipe: Recipe, folder: RunFolder, task: dict[str, Any], entered: float, stack: ExitStack) -> dict[str, Any]:
    import ray
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from lowland.platform.board import BoardMonitor
    from lowland.platform.recipe.dump import dump
    from lowland.platform.startup import FirstStep
    from lowland.platform.tracking.system import SystemMonitor
    from lowland.platform.tracking.writer import MetricWriter
    from lowland.trainers.fit import Places, fit
    from lowland.trainers.models import model_card
    from lowland.trainers.monitor import Monitor, SilentMonitor
    from lowland.trainers.world import World

    context = get_context()
    torch.set_num_threads(max(1, int(recipe.scaling.cpus_per_worker)))
    world = World.current(get_device())
    stack.callback(world.close)
    if 0 < recipe.scaling.gpus_per_worker < 1:
        # Else what one training takes too much of, another would fail for.
        torch.cuda.set_per_process_memory_fraction(recipe.scaling.gpus_per_worker, world.device)
    node = ray.util.get_node_ip_address()
    name = "rank0" if world.rank == 0 else f"node-{node}"
    writer = MetricWriter(task["tracking_uri"], task["run_id"], folder, name, recipe.tracking.flush_seconds)
    stack.callback(writer.close)
    if recipe.tracking.system_metrics and context.get_local_rank() == 0:
        system = SystemMonitor(writer.log, node, task["created"])
        system.start()
        stack.callback(system.stop)
    monitor: Monitor = SilentMonitor()
    first_step = FirstStep(task["times"], entered)
    if world.rank == 0:
        board_monitor = BoardMonitor(task["board"], writer)
        stack.callback(board_monitor.close)
        monitor = first_step.watch(board_monitor)
    export = stack.enter_context(_export_folder(folder, world.rank))
    result = fit(
        recipe,
        world=world,
        monitor=monitor,
        places=Places(f"{folder.uri}/checkpoints", export),
        card=lambda metrics: model_card(recipe.name, dump(recipe), metrics),
        metadata={"mlflow_run_id": task["run_id"], "run": recipe.name},
        started=first_step.mark,
        before_commit=writer.persist,
        until=Fraction(*task.get("until", (1, 1))),
        elsewhere=_reader(recipe),
    )
    return {**asdict(result), "startup": first_step.here}


def _reader(recipe: Recipe) -> "RayReader | None":
    """What makes batches in other processes, if the recipe wants it."""
    if not isinstance(recipe, ImageClassificationRecipe) or recipe.data.reader != "ray":
        return None
    from lowland.platform.ray_reader import RayReader  # a second of imports

    return RayReader(recipe.data.ray_tasks)


@contextmanager
def _export_folder(folder: RunFolder, rank: int) -> Iterator[Path]:
    """Where rank 0 writes the model: the run folder, or a local one that is copied there."""
    if folder.local is not None:
        yield folder.local / "model"
        return
    from pyarrow import fs

    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        if rank == 0 and any(Path(scratch).iterdir()):
            fs.copy_files(scratch, folder.file("model"), fs.LocalFileSystem(), folder.filesystem)


@contextmanager
def _output_to(folder: RunFolder, name: str) -> Iterator[None]:
    """Sends all that this process prints, native code included, to a file in the run's logs."""
    with tempfile.TemporaryDirectory() as scratch:
        path = (folder.local / "logs" if folder.local is not None else Path(scratch)) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.close(descriptor)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            if folder.local is None:
                folder.write_bytes(path.read_bytes(), "logs", name)
