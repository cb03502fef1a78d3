"""A group of workers that stays: one trainer whose workers train one job after another.

Starting workers takes seconds (processes, imports, process groups, CUDA contexts): paid once per group, not per
segment.  A group that loses a worker ends, and another one, wherever there is room, takes its place.
"""

import threading
from contextlib import suppress
from typing import Any

import ray
from ray.cloudpickle import dumps, loads
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import LoggingConfig

from lowland.platform.controllers import Introduce, Trainer
from lowland.platform.failures import DEFECTS, describe, last_line
from lowland.platform.search.dispatcher import GroupBoard
from lowland.platform.search.jobs import End, Job, Outcome, Resources

COLLECTIVE_SECONDS = 900
ANSWER_SECONDS = 5.0


class WorkerGroup:
    """Workers that take jobs from a dispatcher until they are told to end.

    Args:
        number: tells it apart.
        resources: what it holds.
        dispatcher: the actor.
        storage: folder or URI for Ray's own files.
        name: tells its files from those of groups of other commands.
    """

    def __init__(self, number: int, resources: Resources, dispatcher: Any, storage: str, name: str) -> None:
        self.number, self.resources = number, resources
        self._dispatcher = dispatcher
        trainer = Trainer(
            serve,
            train_loop_config={"group": number, "resources": resources, "dispatcher": dispatcher},
            torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS),
            scaling_config=_scaling(resources),
            run_config=RunConfig(
                name=name,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[Introduce(lambda controller: ray.get(dispatcher.led.remote(number, dumps(controller))))],
            ),
        )
        self.error: str | None = None
        """What ended it, unless it was closed."""
        self._thread = threading.Thread(target=self._run, args=(trainer,), name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its workers run or are being started."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Lets it end after the job it has."""
        self._dispatcher.close.remote(self.number)

    def join(self, timeout: float) -> bool:
        """Waits for its end; whether it has ended in time."""
        self._thread.join(timeout)
        return not self.alive

    def kill(self) -> None:
        """Ends it at once; its workers end with their controller, and `release_orphans` frees what they held."""
        with suppress(RayError):
            controller = ray.get(self._dispatcher.controller.remote(self.number), timeout=ANSWER_SECONDS)
            if controller is not None:
                ray.kill(loads(controller))

    def _run(self, trainer: Trainer) -> None:
        try:
            trainer.fit()
        except Exception as error:
            self.error = why_lost(error)
            self._dispatcher.lost.remote(self.number, self.error)


def why_lost(error: Exception) -> str:
    """In a line, what ended a group: a worker that died, or its controller, or what kept it from coming up."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if failures:
        return describe(failures)
    return "the controller of its workers died" if isinstance(error, RayActorError) else last_line(error)


def _scaling(resources: Resources) -> ScalingConfig:
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    return ScalingConfig(
        num_workers=resources.workers,
        use_gpu=bool(resources.gpus_per_worker),
        resources_per_worker=per_worker,
        placement_strategy=resources.placement,
        accelerator_type=resources.accelerator_type,
    )


def serve(setting: dict[str, Any]) -> None:
    """What runs on each worker: jobs, one after another.

    Args:
        setting: `group`, `resources`, `dispatcher`.
    """
    from ray.train.torch import get_device

    from lowland.platform.worker import make_ready
    from lowland.trainers.world import World

    group, dispatcher = setting["group"], setting["dispatcher"]
    world = World.current(get_device())
    make_ready(world.device)
    while True:
        job: Job | None = None
        ended = False
        if world.rank == 0:
            job = ray.get(dispatcher.take.remote(group, setting["resources"]))
            ended = job is None and ray.get(dispatcher.closed.remote(group))
        job, ended = world.gather((job, ended))[0]
        if ended:
            return
        if job is not None:
            _train(job, dispatcher, group, world.rank, world.size)


def _train(job: Job, dispatcher: Any, group: int, rank: int, ranks: int) -> None:
    """Trains, and tells how it ended; raises where the workers must be started anew."""
    import gc

    import torch.distributed as dist

    from lowland.platform.worker import log_of, train_rank

    task = {**job.task, "board": GroupBoard(dispatcher, group)}
    try:
        result = train_rank(task)
    except Exception as error:
        if ranks > 1 and not dist.is_initialized():  # another worker died and Ray took the process group away
            raise
        outcome = outcome_of(error, rank, log_of(task))
        if outcome is None:
            ray.get(dispatcher.trouble.remote(group, f"rank {rank} failed: {last_line(error)}, see {log_of(task)}"))
            raise
        together = ray.get(dispatcher.met.remote(group, rank, outcome, ranks))
        if outcome.end == "out of memory" or not together:
            raise
    else:
        if rank == 0:
            end: End = "interrupted" if result["interrupted"] else "reached"
            ray.get(dispatcher.done.remote(group, Outcome(end, result=result)))
    finally:
        gc.collect()


def outcome_of(error: Exception, rank: int, log: str) -> Outcome | None:
    """What an error makes of a job; None if the job may well succeed on other workers."""
    import torch

    from lowland.trainers.errors import LowlandError, NonFiniteError, UserError

    if isinstance(error, torch.OutOfMemoryError):
        return Outcome("out of memory", f"rank {rank}: {last_line(error)}")
    if isinstance(error, NonFiniteError):
        return Outcome("diverged", str(error))
    if isinstance(error, UserError):
        return Outcome("refused", str(error))
    if isinstance(error, LowlandError):
        return Outcome("failed", str(error))
    if isinstance(error, DEFECTS):
        return Outcome("failed", f"rank {rank} failed: {type(error).__name__}: {error}; its traceback is in {log}")
    return None
