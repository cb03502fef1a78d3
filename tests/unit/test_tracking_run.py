"""A run in a real MLflow store holds all that is promised, over several attempts."""

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lowland.platform.recipe import CausalLMRecipe
from lowland.platform.recipe.dump import flatten
from lowland.platform.runs import RunFolder
from lowland.platform.tracking.environment import git_states, gpus, packages, write_environment
from lowland.platform.tracking.points import Spool, points
from lowland.platform.tracking.run import TrackedRun
from lowland.platform.tracking.store import check_store, connect
from lowland.platform.tracking.system import SystemMonitor, cpu_metrics, gpu_handles
from lowland.trainers.errors import UserError


def recipe(**changes):
    fields = {
        "name": "small",
        "length": "20 steps",
        "model": {"config": {"model_type": "llama", "hidden_size": 16, "layers": list(range(200))}},
        "data": {"path": "data"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch": {"micro_batch": 2, "global_sequences": 4},
        "scaling": {"workers": 2},
        "tracking": {"tags": {"owner (team)": "vision"}},
    }
    return CausalLMRecipe.model_validate(fields | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def experiment(store):
    return check_store(store, "text")


@pytest.fixture
def run(store, experiment):
    return TrackedRun.start(store, experiment, recipe().name)


@pytest.fixture
def client(store):
    return connect(store)


def artifacts(client, run_id, path=None):
    return sorted(item.path for item in client.list_artifacts(run_id, path))


def test_a_run_says_what_it_is(client, run):
    run.log_recipe(recipe(), attempt=1)
    held = client.get_run(run.run_id)
    assert held.info.status == "RUNNING"
    assert held.info.run_name == "small"
    assert held.data.params == {name: str(value) for name, value in flatten(recipe()).items()}
    expected = {"task": "causal-lm", "model": "llama", "optimizer": "adamw", "world_size": "2", "zero_stage": "2"}
    assert expected | {"attempt": "1", "owner _team_": "vision"} == {
        name: text for name, text in held.data.tags.items() if not name.startswith(("mlflow.", "lowland."))
    }
    assert held.data.tags["lowland.version"]
    assert "recipe.yaml" in artifacts(client, run.run_id)


def test_more_fields_and_longer_values_than_one_request_takes(client, run):
    config = {"model_type": "llama", "text": "x" * 7000} | {f"field_{i}": i for i in range(250)}
    for attempt in (1, 2):
        run.log_recipe(recipe(model={"config": config}), attempt)
    held = client.get_run(run.run_id).data
    assert held.params["model.config.field_249"] == "249"
    assert not [name for name in held.tags if name.startswith("changed.")]


def test_a_resumed_run_is_the_same_run_and_tells_what_changed(client, store, run):
    run.log_recipe(recipe(), attempt=1)
    run.finish("interrupted")
    assert client.get_run(run.run_id).info.status == "KILLED"

    second = TrackedRun.resume(store, run.run_id)
    second.log_recipe(recipe(scaling={"workers": 1}), attempt=2)
    held = client.get_run(run.run_id)
    assert (second.run_id, second.created) == (run.run_id, run.created)
    assert held.info.status == "RUNNING"
    assert held.data.params["scaling.workers"] == "2"
    assert held.data.tags["changed.scaling.workers"] == "1"
    assert (held.data.tags["world_size"], held.data.tags["attempt"]) == ("1", "2")
    assert [name for name in held.data.tags if name.startswith("changed.")] == ["changed.scaling.workers"]

    TrackedRun.resume(store, run.run_id).log_recipe(recipe(), attempt=3)
    assert client.get_run(run.run_id).data.tags["changed.scaling.workers"] == "2"


def test_a_run_that_is_gone_is_the_users_mistake(client, store, run):
    with pytest.raises(UserError, match="is not in sqlite"):
        TrackedRun.resume(store, "0" * 32)
    client.delete_run(run.run_id)
    with pytest.raises(UserError, match="mlflow runs restore"):
        TrackedRun.resume(store, run.run_id)


def test_the_data_set_is_recorded_once_with_its_digest(client, run):
    for _ in range(2):
        run.log_dataset("s3://bucket/data/stdlib/", "ab" * 32, {"tokens": 1000, "rows": 4})
    (held,) = client.get_run(run.run_id).inputs.dataset_inputs
    assert (held.dataset.name, held.dataset.digest) == ("stdlib", "ab" * 18)
    assert held.dataset.source_type == "s3"
    assert json.loads(held.dataset.profile) == {"tokens": 1000, "rows": 4}
    assert [(tag.key, tag.value) for tag in held.tags] == [("mlflow.data.context", "training")]


def test_the_exported_model_is_a_logged_model_and_its_weights_stay_where_they_are(client, run, experiment, tmp_path):
    for name, text in {"config.json": "{}", "README.md": "# small", "model.safetensors": "weights"}.items():
        (tmp_path / name).write_text(text)
    model_id = run.log_model(tmp_path, "/runs/small/model", "causal-lm", 20, {"loss": 1.25})
    (model,) = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run.run_id}'")
    assert model.model_id == model_id
    assert (model.name, model.status, model.model_type) == ("small", "READY", "causal-lm")
    assert model.params["location"] == "/runs/small/model"
    assert {metric.key: metric.value for metric in model.metrics} == {"final/loss": 1.25}
    files = sorted(item.path for item in client.list_logged_model_artifacts(model_id))
    assert files == ["MLmodel", "README.md", "config.json"]
    held = client.get_run(run.run_id)
    assert [(output.model_id, output.step) for output in held.outputs.model_outputs] == [(model_id, 20)]
    assert held.data.metrics == {"final/loss": 1.25}


def test_closing_a_run_delivers_what_its_workers_left(client, run, tmp_path):
    folder = RunFolder.open(str(tmp_path), "run")
    folder.create()
    Spool(folder, "node-b").save(points(1, {"system/b/cpu": 1.0}, 1.0))
    assert run.finish("finished", folder) == 1
    held = client.get_run(run.run_id)
    assert held.info.status == "FINISHED"
    assert held.data.metrics == {"system/b/cpu": 1.0}


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "project"
    root.mkdir()

    def git(*arguments):
        subprocess.run(["git", "-C", root, "-c", "user.name=x", "-c", "user.email=x", *arguments], check=True)

    git("init", "-q", "-b", "trunk")
    (root / "a.py").write_text("one\n")
    git("add", "a.py")
    git("commit", "-q", "-m", "first")
    return root


def test_the_dirty_diff_is_recorded_and_applies(client, run, repository, tmp_path):
    (repository / "a.py").write_text("two\n")
    (repository / "untracked.py").touch()
    run.log_environment([repository])
    files = artifacts(client, run.run_id, "environment")
    assert files == ["environment/environment.json", "environment/git.diff", "environment/packages.txt"]
    diff = client.download_artifacts(run.run_id, "environment/git.diff", str(tmp_path))
    subprocess.run(["git", "-C", repository, "checkout", "-q", "a.py"], check=True)
    subprocess.run(["git", "-C", repository, "apply", diff], check=True)
    assert (repository / "a.py").read_text() == "two\n"
    environment = Path(client.download_artifacts(run.run_id, "environment/environment.json", str(tmp_path)))
    described = json.loads(environment.read_text())
    assert described["git"][0]["changed"] == [" M a.py", "?? untracked.py"]
    assert described["git"][0]["branch"] == "trunk"
    assert described["python"]
    tags = client.get_run(run.run_id).data.tags
    assert tags["mlflow.source.git.commit"] == described["git"][0]["commit"]
    assert tags["git.dirty"] == "true"


def test_a_clean_tree_has_no_diff_and_each_repository_counts_once(repository, tmp_path):
    (repository / "sub").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (state,) = write_environment(out, [repository, repository / "sub", tmp_path])
    assert (state.changed, state.diff) == ((), "")
    assert sorted(path.name for path in out.iterdir()) == ["environment.json", "packages.txt"]


def test_a_repository_without_commits_is_described(tmp_path):
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    (state,) = git_states([tmp_path])
    assert state.commit is None


def test_a_machine_without_git_or_gpus_is_described(monkeypatch, repository):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert git_states([repository]) == []
    assert gpus() == []
    assert any(line.startswith("mlflow==") for line in packages())


def test_system_metrics_are_named_by_node_and_count_seconds_of_the_run():
    taken, created = [], time.time() - 100
    monitor = SystemMonitor(lambda *entry: taken.append(entry), "host 1/a", created, interval=0.05)
    monitor.start()
    deadline = time.monotonic() + 60
    while len(taken) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    monitor.stop()
    count = len(taken)
    assert count >= 3
    assert all(100 <= step <= time.time() - created for step, _ in taken)
    assert set(taken[0][1]) >= {f"system/host_1_a/{key}" for key in cpu_metrics()}
    assert 0 < taken[0][1]["system/host_1_a/system_memory_usage_percentage"] < 100


def test_a_short_run_is_measured_once_and_a_failing_writer_is_left_alone(caplog):
    taken = []
    monitor = SystemMonitor(lambda *entry: taken.append(entry), "a", time.time(), interval=60)
    monitor.start()
    monitor.stop()
    assert len(taken) == 1

    def fail(step, values):
        raise OSError

    before = threading.active_count()
    monitor = SystemMonitor(fail, "a", time.time(), interval=60)
    monitor.start()
    monitor.stop()
    assert threading.active_count() == before
    assert "no longer recorded" in caplog.text


def test_a_machine_without_gpus_has_no_gpu_metrics(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_handles() == []
