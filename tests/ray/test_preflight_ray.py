"""Joining clusters, and pre-flight from every node of one."""

import json
import os
import time

import pytest
import ray
from ray.cluster_utils import Cluster as Raylets
from support.corpus import prepared

from lowland.platform.cluster import checkout_modules, connect
from lowland.platform.hub_data import _fetch_everywhere
from lowland.platform.preflight import preflight
from lowland.platform.recipe import CausalLMRecipe
from lowland.platform.runs import RunFolder
from lowland.trainers.errors import UserError

pytestmark = pytest.mark.ray

LET_THROUGH = 100.0
"""Seconds: far above what any of this takes, far below what Ray waits by itself."""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Not on a cluster that the machine happens to have."""
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="module")
def raylets():
    """Two nodes on this machine, started as `ray start` would."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Raylets(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1, num_gpus=0)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
    patch.undo()


def make_recipe(data, **scaling):
    return CausalLMRecipe.model_validate(
        {
            "task": "causal-lm",
            "name": "run",
            "length": "10 steps",
            "model": {"config": {"model_type": "llama"}},
            "data": {"path": str(data)},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "batch": {"micro_batch": 2},
            "scaling": {"workers": 2} | scaling,
        }
    )


def on_a_worker():
    """Where a worker has lowland from, and two variables there."""

    def look():  # nested, so that it travels by value: workers do not have the tests
        import os

        import lowland.platform.cluster as module

        return module.__file__, {name: os.environ.get(name) for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS")}

    return ray.get(ray.remote(num_cpus=1)(look).remote())


def ours():
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "DS_", "TOKEN", "HF_"))}


def test_a_local_cluster_and_its_preflight(tmp_path):
    recipe = make_recipe(prepared(tmp_path / "data"))
    before = ours()
    with connect("local", cpus=2, gpus=0, start_timeout=30) as cluster:
        assert cluster.started
        assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "30"
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
        path, environment = on_a_worker()
        assert environment == {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        assert ray.get(ray.remote(num_cpus=1)(lambda: os.nice(0)).remote()) == os.nice(0), "no lower priority"
        assert "runtime_resources" not in path, "workers of this machine need no copy of the package"
        folder, store = RunFolder.open(str(tmp_path / "runs"), "run"), f"sqlite:///{tmp_path}/mlflow.db"
        preflight(recipe, cluster, folder, store)
        with pytest.raises(UserError, match=r"asks for 2 GPUs.*the cluster has 0"):
            preflight(make_recipe(tmp_path / "data", gpus_per_worker=1), cluster, folder, store)
        with connect() as same:
            assert same.address == cluster.address
            assert not same.started
        assert ray.is_initialized(), "an inner connect must not end the outer one's cluster"
    assert not ray.is_initialized()
    assert ours() == before


def test_joining_a_cluster_ships_a_checkout_and_checks_every_node(tmp_path, raylets):
    recipe = make_recipe(prepared(tmp_path / "data"))
    folder, store = RunFolder.open(str(tmp_path / "runs"), "run"), f"sqlite:///{tmp_path}/mlflow.db"
    with connect(raylets.address, gpus=0) as cluster:
        assert not cluster.started
        path, environment = on_a_worker()
        assert environment["DS_ACCELERATOR"] == "cpu"
        assert ("py_modules_files" in path) == bool(checkout_modules())
        preflight(recipe, cluster, folder, store)
        assert list((tmp_path / "runs").iterdir()) == []
        with pytest.raises(UserError) as caught:
            preflight(make_recipe(tmp_path / "data", workers=1, cpus_per_worker=2), cluster, folder, store)
        assert "only 0 of 1 workers fit on the nodes" in str(caught.value)
    assert len([node for node in ray_nodes(raylets) if node["Alive"]]) == 2, "leaving must not stop the cluster"


def test_a_job_with_a_runtime_environment_of_its_own(raylets, monkeypatch):
    """`ray job submit` describes its environment in this variable; Ray refuses two that name the same thing."""
    job = {"env_vars": {"TOKENIZERS_PARALLELISM": "true", "OF_THE_JOB": "1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": job, "metadata": {}}))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("RAY_ADDRESS", raylets.address)
    with connect(gpus=0) as cluster:
        assert not cluster.started

        def look():
            import os

            return [os.environ.get(name) for name in ("OF_THE_JOB", "TOKENIZERS_PARALLELISM", "DS_ACCELERATOR")]

        assert ray.get(ray.remote(num_cpus=1)(look).remote()) == ["1", "true", "cpu"]


def test_a_data_set_of_the_hub_is_fetched_on_every_node_and_trouble_there_is_told(tmp_path, raylets):
    class Found:  # nested, so that it travels by value
        def download(self):
            from pathlib import Path

            import ray

            from lowland.trainers.errors import DataError

            node = ray.get_runtime_context().get_node_id()
            Path(tmp_path, node).touch()
            if Path(tmp_path, f"bad-{node}").exists():
                raise DataError("no room")

    with connect(raylets.address, gpus=0):
        _fetch_everywhere(Found())
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(nodes)
        (tmp_path / f"bad-{nodes[1]}").touch()
        with pytest.raises(UserError, match=rf"^node .*{nodes[1][:6]}\): no room$"):
            _fetch_everywhere(Found())


def ray_nodes(raylets):
    with connect(raylets.address):
        return ray.nodes()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("127.0.0.1", "write host:port"),
        ("ray://127.0.0.1:10001", "ray job submit"),
        ("http://127.0.0.1:8265", "ray job submit"),
    ],
)
def test_wrong_addresses_are_reported_at_once(address, message):
    started = time.monotonic()
    with pytest.raises(UserError, match=message), connect(address):
        pass
    assert time.monotonic() - started < LET_THROUGH
    assert not ray.is_initialized()
