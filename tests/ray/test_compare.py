"""The page on comparing optimizers, run as it is written, only smaller; with a Ctrl-C and a kill -9 on the way."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run
from support.corpus import prepared
from support.docs import ROOT, commands
from support.full import full
from support.ray_runs import client, environment

from lowland.platform.comparison.plan import read_comparison
from lowland.platform.comparison.results import read_result

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

PAGE = ROOT / "docs" / "how-to" / "compare-optimizers.md"
PATIENCE = 600.0
TOKEN = "LOWLAND_TEST_COMMAND"
NAME = "adamw-vs-adatamw"
SMALL = {
    "length": "51 steps",
    "model.config.hidden_size": 32,
    "model.config.num_hidden_layers": 1,
    "sharding": {"engine": "torch"},
    "scaling.workers": 1,
    "evaluation.every": None,
    "checkpoints.every": None,
    "tracking.system_metrics": False,
}
FEW = ["--trials", "2", "--seeds", "2", "--parallel", "1", "--sampler", "random"]


@contextmanager
def command(folder: Path, words: list[str]) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
    """A command of the page with a cluster of its own; and what kills it and all that it started."""
    small = [word for path, value in SMALL.items() for word in ("--set", f"{path}={json.dumps(value)}")]
    token = uuid.uuid4().hex
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("lowland")), *words[1:], *small, *FEW],
        cwd=folder,
        env=environment(**{TOKEN: token}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def kill() -> None:
        for other in psutil.process_iter():
            try:
                if other.environ().get(TOKEN) == token:
                    other.kill()
            except psutil.Error:
                continue
        process.wait()

    try:
        yield process, kill
    finally:
        kill()


def until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits until something is there."""
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end, "it never came to that"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def below(runs: list[Run], parent: str) -> list[Run]:
    return [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]


def disturb(tmp_path: Path, begun: list[str], resumed: list[str]) -> None:
    """Ctrl-C while trials are tried, and kill -9 while seeds are trained."""
    folder = tmp_path / "runs" / NAME
    with command(tmp_path, begun) as (process, _):
        journal = folder / "adamw-tuning" / "trials.journal"
        until(lambda: journal.exists() and "intermediate" in journal.read_text(), process)
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 130, output
        assert "go on with the same command and --resume" in output

    with command(tmp_path, resumed) as (process, kill):
        until((folder / "adamw-seeds" / "trials.journal").exists, process)
        kill()


@pytest.mark.parametrize("disturbed", [False, full(True)])
def test_the_page_tells_optimizers_apart_whatever_comes_between(
    disturbed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    prepared(tmp_path / "runs" / "data" / "stdlib", held_out=6)
    page = [words for words in commands(PAGE, "bash") if words[2] == "recipes/stdlib-adamw.yaml"]
    begun, resumed = page
    assert resumed == [*begun, "--resume"]
    if disturbed:
        disturb(tmp_path, begun, resumed)
    # Undisturbed it has only to begin; else the second time nothing is left to do.
    for words in [resumed, resumed] if disturbed else [begun]:
        with command(tmp_path, words) as (process, _):
            output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, output
        for line in ("adamw-vs-adatamw: eval/loss, lower is better, 2 seeds", "minus adamw", "p (signs)"):
            assert line in output
    assert disturbed is ("trials at a time" not in output)

    comparison = read_comparison(str(tmp_path / "runs"), NAME)
    assert comparison is not None
    assert comparison.status == "finished"
    result = read_result(comparison.plan)
    for arm in result.arms:
        assert list(arm.values) == [1, 2]
        assert arm.tuning is not None
        assert len(arm.tuning.trials) == 2
        assert arm.trained is not None
        assert arm.trained.setting is not None
        evaluation = arm.trained.setting.recipe.evaluation
        assert (evaluation.skip_sequences, evaluation.max_sequences) == (3, 3)
    against = result.arms[1].against
    assert against is not None
    assert against.pairs == 2

    store = client(tmp_path / "runs")
    runs = list(store.search_runs([store.get_experiment_by_name("lowland").experiment_id]))
    (whole,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert whole.info.run_id == comparison.parent_run_id
    assert whole.info.status == "FINISHED"
    assert whole.data.metrics["compare/adatamw/difference"] == pytest.approx(against.difference.mean)
    assert {file.path for file in store.list_artifacts(whole.info.run_id)} >= {"comparison.html", "adatamw.yaml"}
    studies = below(runs, whole.info.run_id)
    assert sorted(run.info.run_name for run in studies) == sorted(
        f"{a}-{k}" for a in ("adamw", "adatamw") for k in ("tuning", "seeds")
    )
    trainings = [run for study in studies for run in below(runs, study.info.run_id)]
    assert len(runs) == 1 + 4 + 8
    assert len(trainings) == 8
    for run in trainings:
        steps = [point.step for point in store.get_metric_history(run.info.run_id, "eval/loss")]
        assert len(steps) == len(set(steps)), "no place is measured twice"
