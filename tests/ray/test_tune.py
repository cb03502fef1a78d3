"""Searches on a cluster: workers that stay, a stop and what goes on from storage, one MLflow run a trial."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cloudpickle import loads
from ray.util import placement_group, placement_group_table, remove_placement_group
from rich.console import Console
from support.ray_runs import client, recipe, screen, written

from lowland.platform.runs import RunFolder
from lowland.platform.search import pool as pool_module
from lowland.platform.search.dispatcher import Look, create_dispatcher
from lowland.platform.search.jobs import Job, Outcome, Resources
from lowland.platform.search.pool import Pool
from lowland.platform.search.setting import STOP, existing_study
from lowland.platform.search.start import begin, changed
from lowland.platform.search.trial_runs import resources_of
from lowland.platform.search.tune import tune
from lowland.platform.tracking.run import TrackedRun
from lowland.platform.tracking.store import check_store
from lowland.trainers.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SECTIONS: dict[str, Any] = {
    "length": "51 steps",
    "schedule": {"name": "constant"},
    "evaluation": {"every": None},
    "checkpoints": {"every": None, "export": False},
    "tracking": {"system_metrics": False},
}
SPACE = """
description: A rate
parameters:
  optimizer.lr: {type: float, low: 3.0e-4, high: 3.0e-2, log: true}
"""


def groups_held() -> int:
    return sum(group["state"] == "CREATED" for group in placement_group_table().values())


def test_workers_stay_between_jobs_whatever_these_come_to(cluster: None, text: Path, tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    experiment = check_store(uri, "lowland")
    dispatcher = create_dispatcher(1)

    def job(name: str, part: int, attempt: int = 1, **changes: Any) -> Job:
        made = recipe(text, tmp_path, name, **{**SECTIONS, **changes})
        if attempt == 1:
            RunFolder.open(made.storage, made.name).create()
        tracked = TrackedRun.start(uri, experiment, name)
        began = {"times": {"command": time.time()}}
        task = {"recipe": made.model_dump(mode="json"), "run_id": tracked.run_id, "tracking_uri": uri}
        return Job(
            resources_of(made), {**task, "created": tracked.created, "attempt": attempt, "until": (part, 51), **began}
        )

    pool = Pool(dispatcher, str(tmp_path / "ray"), 1, lambda _: 1)

    def run(made: Job, disturb: Callable[[Look], None] = lambda _: None) -> Outcome:
        reply, end = dispatcher.run.remote(made), time.monotonic() + 300
        while not ray.wait([reply], timeout=0.2)[0]:
            assert time.monotonic() < end
            look = ray.get(dispatcher.look.remote())
            pool.tend(look)
            disturb(look)
        outcome: Outcome = ray.get(reply)
        return outcome

    killed: set[int] = set()

    def kill_controller(look: Look) -> None:
        if look.progress and look.busy - killed and not killed:
            killed.update(look.busy)
            ray.kill(loads(ray.get(dispatcher.controller.remote(*look.busy))))

    first = job("a", 3)
    outcome = run(first)
    assert (outcome.end, outcome.result["step"], outcome.attempts) == ("reached", 3, 1)
    wild = run(job("b", 51, optimizer={"name": "sgd", "lr": 1e30}))
    assert (wild.end, wild.attempts) == ("diverged", 1)
    assert "is not finite" in wild.message
    absent = run(job("c", 51, data={"path": str(tmp_path / "nowhere")}))
    assert absent.end == "refused"
    plain = {"sharding": {"stage": 0}}
    full = {"name": "custom", "lr": 1e-3, "weight_decay": 0, "target": "support.trouble:Full"}
    outcome_of_full = run(job("full", 51, optimizer=full, **plain))
    assert (outcome_of_full.end, outcome_of_full.attempts) == ("out of memory", 1), outcome_of_full.message
    dies = {**full, "target": "support.trouble:Dies", "arguments": {"marker": str(tmp_path / "died")}}
    again = run(job("dies", 3, optimizer=dies, **plain))
    assert (again.end, again.attempts) == ("reached", 2), again.message
    groups = ray.get(dispatcher.look.remote()).came
    second = run(job("a", 9, attempt=2))
    assert (second.end, second.result["step"], second.result["resumed_from"]) == ("reached", 9, 3)
    assert second.result["metrics"]["eval/loss"] < outcome.result["metrics"]["eval/loss"]
    assert ray.get(dispatcher.look.remote()).came == groups, "no process starts for it"
    slow = {"optimizer": {**full, "target": "support.trouble:Slow"}, **plain}
    led_again = run(job("slow", 51, **slow), kill_controller)
    assert (led_again.end, led_again.attempts) == ("reached", 2), led_again.message
    assert killed
    pool.close()
    pool.join()
    assert groups_held() == 0, "what the killed controller held is free too"


def test_a_group_that_does_not_end_by_itself_is_killed_and_holds_nothing(
    cluster: None, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "CLOSE_SECONDS", 1.0)
    never = Resources(1, 3.0, 0, None, "PACK")
    dispatcher = create_dispatcher(0)
    holds = placement_group([{"CPU": 3.0}])
    ray.get(holds.ready())
    pool = Pool(dispatcher, str(tmp_path / "ray"), 1, lambda _: 1)
    pool.tend(Look({never: 1}, frozenset(), {}, frozenset(), ()))
    until = time.monotonic() + 120
    while sum(group["state"] == "PENDING" for group in placement_group_table().values()) != 1:
        assert time.monotonic() < until, "it waits for room"
        time.sleep(0.2)
    pool.close()
    pool.join()
    remove_placement_group(holds)
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


class Told(Console):
    """A console that calls back once a line holds a word."""

    def __init__(self, word: str, call: Callable[[], None]) -> None:
        super().__init__(file=screen().file, width=200, soft_wrap=True)
        self._word, self._call, self._called = word, call, False

    def print(self, *objects: Any, **keywords: Any) -> None:
        """Prints, and calls back the first time."""
        super().print(*objects, **keywords)
        if not self._called and any(self._word in str(item) for item in objects):
            self._called = True
            self._call()


def test_a_search_is_stopped_goes_on_from_storage_and_leaves_one_run_a_trial(cluster: None, text: Path, tmp_path: Path):
    """Its trials in a database here; other tests have them in a journal."""
    (tmp_path / "rate.yaml").write_text(SPACE)
    base = recipe(text, tmp_path / "runs", "rate", **{**SECTIONS, "scaling": {"workers": 1}})
    place = {"database": f"sqlite:///{tmp_path}/trials.db", "price": "2usd"}
    setting = begin(base, [str(tmp_path / "rate.yaml")], trials=4, parallel="1", sampler="random", **place)
    control_c = Told("paused", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert tune(setting, address=None, console=control_c).exit_code == 130
    assert "stopping: trials save and end after their step" in written(control_c)
    assert "lowland study resume rate" in written(control_c)
    stop = Told("paused", (setting.folder / STOP).touch)
    assert tune(changed(base.storage, "rate"), address=None, console=stop).status == "interrupted"
    with pytest.raises(UserError, match="study 'rate' exists"):
        begin(base, ["auto"], trials=4)
    console = screen()
    outcome = tune(changed(base.storage, "rate"), address=None, console=console)
    assert outcome.status == "finished", written(console)
    from lowland.platform.search.results import read_study

    found = read_study(base.storage, "rate")
    assert len(found.trials) == 4
    curves = [set(trial.curve) for trial in found.trials]
    assert all(3 in curve for curve in curves)
    assert max(curves, key=len) == {3, 9, 27, 51}, "the best one was trained whole"
    store = client(tmp_path / "runs")
    runs = store.search_runs([store.get_run(outcome.parent_run_id).info.experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == outcome.parent_run_id]
    assert len(runs) == 5
    assert sorted(run.data.tags["lowland.trial"] for run in children) == ["0", "1", "2", "3"]
    whole = next(
        run
        for run in children
        if run.data.metrics["train/epoch"] == max(r.data.metrics["train/epoch"] for r in children)
    )
    assert [m.step for m in store.get_metric_history(whole.info.run_id, "eval/loss")] == [3, 9, 27, 51]
    assert {run.info.status for run in children} == {"FINISHED"}
    parent = store.get_run(outcome.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["search/trainings"] == pytest.approx(sum(max(c) for c in curves) / 51)
    spent = parent.data.metrics["search/device_seconds"]
    assert parent.data.metrics["search/money"] == pytest.approx(2 * spent / 3600)
    assert parent.data.metrics["search/money_per_trial"] == pytest.approx(2 * spent / 3600 / 4)
    assert {"summary.txt", "best-recipe.yaml"} <= {item.path for item in store.list_artifacts(outcome.parent_run_id)}
    assert existing_study(base.storage, "rate").status == "finished"
    assert groups_held() == 0


def test_what_the_cluster_cannot_hold_is_refused_before_the_first_trial(cluster: None, text: Path, tmp_path: Path):
    (tmp_path / "rate.yaml").write_text(SPACE)
    wide = {"scaling": {"workers": 9}, "batch": {"micro_batch": 2, "global_sequences": 18}}
    base = recipe(text, tmp_path / "runs", "wide", **{**SECTIONS, **wide})
    setting = begin(base, [str(tmp_path / "rate.yaml")], trials=4)
    with pytest.raises(UserError, match="the run asks for 9 CPUs"):
        tune(setting, address=None, console=screen())
    assert not setting.folder.exists()
