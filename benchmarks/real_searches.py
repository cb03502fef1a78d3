"""One search of real trainings, by lowland or by Ray Tune as it comes, and all that its trainings measured.

python benchmarks/real_searches.py SEARCH.json     (started by search_real.py)

Both sides train the same recipes by `lowland.trainers.fit`, which evaluates after each epoch.  Time counts from the
start of this process, as for whoever types the command: imports, Ray's start and the tracking store's are in it.
"""

import json
import os
import sys
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import write_json
from real_tasks import EPOCHS

from lowland.platform.recipe import Recipe, read_recipe
from lowland.platform.search.space import BoundSpace
from lowland.platform.startup import command_started
from lowland.search_spaces import Space

if TYPE_CHECKING:
    from ray import tune

START = 40
"""Seconds that a user would set aside for the start of a search when giving it a budget."""
FACTOR = 3
"""Of each rung one in so many goes on, here and by lowland's default."""
Point = tuple[float, str, float, float | None]
"""When, in seconds of the search; which trial; the held-out loss; the accuracy, where there is one."""


@dataclass(frozen=True)
class Order:
    """What is searched, and how long."""

    method: str
    seed: int
    seconds: float
    parallel: int
    """Trials at a time."""
    recipe: dict[str, Any]
    space: dict[str, Any]
    result: str
    """The file to write."""
    cores: list[int]
    """Of the machine, that all of it runs on."""


@dataclass
class Found:
    """What a search measured."""

    trials: int = 0
    """That began."""
    points: list[Point] = field(default_factory=list)
    """Each epoch that a trial was trained and evaluated, by time, as far as the seconds went."""
    starts: list[float] = field(default_factory=list)
    """Seconds from each decision of `lowland tune`, after the first loss, to the first step that followed from it."""


def main(path: Path) -> None:
    """Searches, and writes what was found."""
    order = Order(**json.loads(path.read_text(encoding="utf-8")))
    os.sched_setaffinity(0, order.cores)  # Ray's processes inherit it
    found = (_stock if order.method in ("stock", "random") else _lowland)(order, command_started())
    found.points = sorted((point for point in found.points if point[0] <= order.seconds), key=lambda point: point[0])
    write_json(Path(order.result), found)


def _lowland(order: Order, begun: float) -> Found:
    """`lowland tune`, stopped after the seconds as by `lowland study stop`."""
    from rich.console import Console

    from lowland.platform.search.setting import STOP
    from lowland.platform.search.start import begin
    from lowland.platform.search.tune import tune

    space = Path(order.result).with_name("space.yaml")
    space.write_text(json.dumps(order.space), encoding="utf-8")  # which is YAML
    how: dict[str, Any] = {"trials": 10**6, "parallel": str(order.parallel), "seed": order.seed}
    if order.method == "stopping":
        how["policy"] = "stopping"
    if order.method.startswith("first-"):
        how["first_rung"] = f"{order.method.removeprefix('first-')}%"
    if order.method == "budget":
        how["budget"] = f"{order.parallel * (order.seconds - START):.0f}seconds"
    setting = begin(read_recipe(order.recipe), [str(space)], **how)
    stop = threading.Timer(begun + order.seconds - time.time(), (setting.folder / STOP).touch)
    stop.daemon = True
    stop.start()
    outcome = tune(setting, address="local", console=Console(width=150))
    return _recorded(outcome.tracking_uri, outcome.parent_run_id, begun)


def _recorded(uri: str, parent: str, begun: float) -> Found:
    """What the trials' runs in MLflow have."""
    from lowland.platform.tracking.run import find_runs
    from lowland.platform.tracking.store import connect

    client, found = connect(uri), Found()
    steps = list[tuple[float, float]]()
    for run in find_runs(uri, client.get_run(parent).info.experiment_id, "mlflow.parentRunId", parent):
        found.trials += 1
        trial, run_id = run.data.tags["lowland.trial"], run.info.run_id
        accuracies = {p.step: p.value for p in client.get_metric_history(run_id, "eval/accuracy")}
        for point in client.get_metric_history(run_id, "eval/loss"):
            seconds = point.timestamp / 1000 - begun
            found.points.append((seconds, trial, point.value, accuracies.get(point.step)))
        first = client.get_metric_history(run_id, "startup/total_seconds")
        steps += [(p.timestamp / 1000 - begun, p.value) for p in first]
    warm = min((point[0] for point in found.points), default=0.0)
    found.starts = [took for at, took in steps if at - took >= warm]
    return found


def _cluster(order: Order, recipe: Recipe) -> AbstractContextManager[Any]:
    """One that holds the trials and leaves a CPU, as `lowland tune` makes it for itself."""
    from lowland.platform.cluster import connect

    scaling = recipe.scaling
    cpus = max(len(order.cores), int(order.parallel * scaling.cpus_per_worker) + 1)
    return connect("local", cpus=cpus, gpus=None if scaling.gpus_per_worker else 0)


def _stock(order: Order, begun: float) -> Found:
    """Ray Tune with OptunaSearch and, unless the search is random, ASHAScheduler.

    Raises:
        RuntimeError: trials failed.
    """
    recipe = read_recipe(order.recipe)
    scaling = recipe.scaling
    with _cluster(order, recipe):
        from ray import tune
        from real_trainable import train

        keep = _keeper(begun)
        trainable = tune.with_parameters(train, recipe=order.recipe, space=order.space)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": scaling.cpus_per_worker, "gpu": scaling.gpus_per_worker}),
            tune_config=_tune_config(order, BoundSpace(Space.model_validate(order.space), recipe), begun),
            run_config=tune.RunConfig(name="tune", storage_path=recipe.storage, verbose=0, callbacks=[keep]),
        )
        tuner.fit()
    if keep.failed:
        raise RuntimeError(f"{len(keep.failed)} trials failed, the first of them {keep.failed[0]}")
    found: Found = keep.found
    return found


def _tune_config(order: Order, space: BoundSpace, begun: float) -> "tune.TuneConfig":
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    from ray.tune.search.optuna import OptunaSearch

    judged: dict[str, Any] = {"metric": "loss", "mode": "min"}
    if order.method == "random":
        search = OptunaSearch(space.distributions(), sampler=optuna.samplers.RandomSampler(order.seed), **judged)
        scheduler: Any = FIFOScheduler()
    else:
        search = OptunaSearch(space.distributions(), seed=order.seed, **judged)
        scheduler = ASHAScheduler("epoch", max_t=EPOCHS, grace_period=1, reduction_factor=FACTOR, **judged)
    return tune.TuneConfig(
        search_alg=search,
        scheduler=scheduler,
        num_samples=-1,
        max_concurrent_trials=order.parallel,
        time_budget_s=begun + order.seconds - time.time(),
        reuse_actors=True,  # not its default: else each trial would start a process and import torch
    )


def _keeper(begun: float) -> Any:
    """A callback of Tune that keeps what trials report."""
    from ray.tune import Callback
    from real_trainable import DIVERGED

    class Keeper(Callback):
        def __init__(self) -> None:
            self.found, self.failed = Found(), list[str]()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.found.trials += 1

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.failed.append(str(trial.error_file))

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if result["loss"] < DIVERGED:
                at = result["at"] - begun
                self.found.points.append((at, trial.trial_id, result["loss"], result.get("accuracy")))

    return Keeper()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
