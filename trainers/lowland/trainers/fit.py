"""`fit`: a training from its recipe to its result, in the processes that are already there."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import torch

from lowland.trainers.checkpoints import Checkpointer, CheckpointStore, TrainState
from lowland.trainers.data.images.elsewhere import Elsewhere
from lowland.trainers.engines import Engine, build_engine
from lowland.trainers.errors import LowlandError
from lowland.trainers.loop import Loop
from lowland.trainers.monitor import Monitor, SilentMonitor
from lowland.trainers.recipe import StepSize, TrainConfig
from lowland.trainers.tasks import Task, build_task
from lowland.trainers.world import World

T = TypeVar("T")


@dataclass(frozen=True)
class Places:
    """Where a training writes."""

    checkpoints: str
    """Folder or URI of its checkpoints."""
    export: Path | None
    """Local folder for the final model; None writes none."""


@dataclass(frozen=True)
class FitResult:
    """What became of a training, the same on every rank."""

    step: int
    total_steps: int
    metrics: dict[str, float]
    """The latest training and evaluation metrics."""
    checkpoint: str | None
    """Folder of the last checkpoint."""
    resumed_from: int | None
    """Step of the checkpoint it went on from."""
    interrupted: bool
    """Whether it ended because the monitor asked it to."""
    seconds: float
    """Time spent training, over all attempts."""
    skipped: int
    """Steps whose gradient was not finite."""


def fit(
    config: TrainConfig,
    *,
    world: World,
    monitor: Monitor,
    places: Places,
    card: Callable[[dict[str, float]], str],
    metadata: dict[str, str],
    started: Callable[[str], None] = lambda _: None,
    before_commit: Callable[[], None] = lambda: None,
    until: Fraction = Fraction(1),
    elsewhere: Elsewhere | None = None,
) -> FitResult:
    """Trains from the newest whole checkpoint in `places`, or from the start, to the end or to a part of it.

    Called by every rank with the same arguments.

    Args:
        config: the training.
        world: the ranks; torch.distributed is initialised if there are several.
        monitor: the outside; used on rank 0 only.
        places: where checkpoints and the model go.
        card: makes the exported model's card from the final metrics.
        metadata: kept in every checkpoint.
        started: told when `data`, `model` and `engine` are ready, for start-up times.
        before_commit: called before a checkpoint is committed, on every rank: what a resume will not
            make again must be safe by then.
        until: the share of the training, in (0, 1], after which this call ends, rounded up to a step: there it
            evaluates and saves.  Whatever is set by the length (the schedule, for example) is as in the whole.
        elsewhere: makes batches in other processes, for recipes that want it; None makes the same ones here.

    Raises:
        UserError: data, model, recipe and checkpoints do not go together, or no checkpoint is whole.
        RunError: a checkpoint could not be written, or the training met a value that is not finite.
    """
    torch.manual_seed(config.seed)
    monitor = monitor if world.rank == 0 else SilentMonitor()
    task = _together(world, lambda: build_task(config, world))
    started("data")
    task.report(monitor)
    engine = _engine(config, task, world, started)
    try:
        task.methods.attach(engine)
        store = CheckpointStore(places.checkpoints)
        checkpointer = Checkpointer(
            store,
            engine,
            world,
            config.checkpoints,
            optimizer=config.optimizer.method,
            zero_stage=config.sharding.zero_stage,
            metadata=metadata,
            before_commit=before_commit,
            methods=task.methods,
        )
        loop = Loop(config, task, engine, checkpointer, world, monitor, until, elsewhere)
        resumed_from = checkpointer.latest()
        # Dropout differs between ranks; a resume restores each rank's own generator, if that rank was there.
        torch.manual_seed(config.seed + world.rank)
        if resumed_from is None:
            task.check(engine)
            state = loop.run(TrainState())
        else:
            loop.last_checkpoint = store.path(resumed_from)
            if (newest := checkpointer.newest()) != loop.last_checkpoint:
                monitor.event(f"checkpoint {newest} is damaged and passed over")
            monitor.event(f"resumed from the checkpoint of step {resumed_from}")
            state = loop.run(checkpointer.load(resumed_from))
        if state.step == loop.total_steps and places.export is not None and config.checkpoints.export:
            task.export(engine, places.export, card(state.metrics))
    finally:
        engine.close()
    return FitResult(
        step=state.step,
        total_steps=loop.total_steps,
        metrics=state.metrics,
        checkpoint=loop.last_checkpoint,
        resumed_from=resumed_from,
        interrupted=loop.interrupted,
        seconds=state.seconds,
        skipped=state.skipped,
    )


def _engine(config: TrainConfig, task: Task, world: World, started: Callable[[str], None]) -> Engine:
    module = _together(world, task.build_module)
    started("model")
    sizes = task.sizes
    engine = build_engine(
        module,
        config,
        bf16=task.bf16,
        accumulation=sizes.accumulation,
        world=world,
        step=StepSize(sizes.tokens_per_step, sizes.examples_per_step),
    )
    started("engine")
    return engine


def _together(world: World, build: Callable[[], T]) -> T:
    """What `build` gives; if it raises on one rank, every rank raises that error instead of waiting for it."""
    built: T | None = None
    error: LowlandError | None = None
    try:
        built = build()
    except LowlandError as raised:
        error = raised
    first = world.first(error)
    if first is not None:
        raise first
    assert built is not None
    return built
