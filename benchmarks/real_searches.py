"""One search of real trainings, by lowland or by Ray Tune as it comes, and all that its trainings measured.

python benchmarks/real_searches.py SEARCH.json     (started by search_real.py)

Both sides train the same recipes by `lowland.trainers.fit`, which evaluates after each epoch.  Time counts from the
moment at which a cluster stands: workers are still to be started, the tracking store and Ray are there.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import write_json
from real_tasks import EPOCHS

from lowland.platform.recipe import Recipe
from lowland.platform.recipe.model import read_recipe
from lowland.platform.search.space import BoundSpace
from lowland.search_spaces import Space

if TYPE_CHECKING:
    from ray import tune

DIVERGED = 1e3
"""What a training of the stock side reports instead of a loss that is not finite: worse than any loss."""
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

    startup: float = 0.0
    """Seconds until there was a cluster."""
    trials: int = 0
    """That began."""
    points: list[Point] = field(default_factory=list)
    """Each epoch that a trial was trained and evaluated, by time, as far as the seconds went."""


def main(path: Path) -> None:
    """Searches, and writes what was found."""
    born = time.time()
    order = Order(**json.loads(path.read_text(encoding="utf-8")))
    os.sched_setaffinity(0, order.cores)  # Ray's processes inherit it
    found, begun = (_lowland if order.method == "lowland" else _stock)(order)
    found.startup = begun - born
    found.points = sorted((point for point in found.points if point[0] <= order.seconds), key=lambda point: point[0])
    write_json(Path(order.result), found)


def _lowland(order: Order) -> tuple[Found, float]:
    """`lowland tune`, stopped after the seconds as by `lowland study stop`; and when it began."""
    from rich.console import Console

    from lowland.platform.search.setting import STOP
    from lowland.platform.search.start import begin
    from lowland.platform.search.tune import ready

    space = Path(order.result).with_name("space.yaml")
    space.write_text(json.dumps(order.space), encoding="utf-8")  # which is YAML
    recipe = read_recipe(order.recipe)
    setting = begin(recipe, [str(space)], trials=10**6, parallel=str(order.parallel), seed=order.seed)
    with ready([recipe], "local", order.parallel) as (uri, experiment_id):
        from lowland.platform.search.driver import SearchDriver
        from lowland.platform.search.workers import Workers

        begun = time.time()
        stop = threading.Timer(order.seconds, (setting.folder / STOP).touch)
        stop.daemon = True
        with Workers(recipe, str(setting.folder / "ray"), order.parallel) as workers:
            driver = SearchDriver(setting, uri, experiment_id, Console(width=150), workers)
            stop.start()
            parent = driver.run().parent_run_id
    return _recorded(uri, experiment_id, parent, begun), begun


def _recorded(uri: str, experiment_id: str, parent: str, begun: float) -> Found:
    """What the trials' runs in MLflow have."""
    from lowland.platform.tracking.run import find_runs
    from lowland.platform.tracking.store import connect

    client, found = connect(uri), Found()
    for run in find_runs(uri, experiment_id, "mlflow.parentRunId", parent):
        found.trials += 1
        trial = run.data.tags["lowland.trial"]
        accuracies = {p.step: p.value for p in client.get_metric_history(run.info.run_id, "eval/accuracy")}
        for point in client.get_metric_history(run.info.run_id, "eval/loss"):
            seconds = point.timestamp / 1000 - begun
            found.points.append((seconds, trial, point.value, accuracies.get(point.step)))
    return found


def _stock(order: Order) -> tuple[Found, float]:
    """Ray Tune with OptunaSearch and, unless the search is random, ASHAScheduler; and when it began."""
    from lowland.platform.cluster import connect

    recipe = read_recipe(order.recipe)
    cpus, gpus = recipe.scaling.cpus_per_worker, recipe.scaling.gpus_per_worker
    offered = max(os.cpu_count() or 1, int(order.parallel * cpus) + 1)
    with connect("local", cpus=offered, gpus=None if gpus else 0):
        from ray import tune

        keep = _keeper()
        trainable = tune.with_parameters(train, recipe=order.recipe, space=order.space)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": cpus, "gpu": gpus}),
            tune_config=_tune_config(order, BoundSpace(Space.model_validate(order.space), recipe)),
            run_config=tune.RunConfig(name="tune", storage_path=recipe.storage, verbose=0, callbacks=[keep]),
        )
        keep.begun = begun = time.time()
        tuner.fit()
        return keep.found, begun


def _tune_config(order: Order, space: BoundSpace) -> "tune.TuneConfig":
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
        time_budget_s=order.seconds,
        reuse_actors=True,  # not its default: else each trial would start a process and import torch
    )


def _keeper() -> Any:
    """A callback of Tune that keeps what trials report."""
    from ray.tune import Callback

    class Keeper(Callback):
        def __init__(self) -> None:
            self.begun, self.found = 0.0, Found()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.found.trials += 1

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if result["loss"] < DIVERGED:
                at = result["at"] - self.begun
                self.found.points.append((at, trial.trial_id, result["loss"], result.get("accuracy")))

    return Keeper()


def train(config: dict[str, Any], *, recipe: dict[str, Any], space: dict[str, Any]) -> None:
    """The trainable of the stock side: one trial, in Tune's process."""
    import torch
    from ray import tune

    from lowland.trainers.errors import NonFiniteError
    from lowland.trainers.fit import Places, fit
    from lowland.trainers.monitor import SilentMonitor
    from lowland.trainers.world import World

    class Reports(SilentMonitor):
        epoch = 0

        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            if "eval/loss" in values:
                self.epoch += 1
                more = {"accuracy": values["eval/accuracy"]} if "eval/accuracy" in values else {}
                tune.report({"loss": values["eval/loss"], "epoch": self.epoch, "at": time.time(), **more})

    base: Recipe = read_recipe(recipe)
    torch.set_num_threads(int(base.scaling.cpus_per_worker))
    device = torch.device("cuda" if base.scaling.gpus_per_worker else "cpu")
    monitor = Reports()
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(
                BoundSpace(Space.model_validate(space), base).apply(config),
                world=World.current(device),
                monitor=monitor,
                places=Places(folder, None),
                card=lambda metrics: "",
                metadata={},
            )
        except NonFiniteError:
            tune.report({"loss": DIVERGED, "epoch": monitor.epoch + 1, "at": time.time()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
