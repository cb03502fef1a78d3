"""RAY_AUTH_MODE is never left to each process's own guess; and what happens when Ray does not start."""

from pathlib import Path

import pytest

from lowland.platform.cluster import (
    GPU_ENVIRONMENT,
    LOCAL_ENVIRONMENT,
    RAY_ENVIRONMENT,
    authentication_mode,
    connect,
)
from lowland.trainers.errors import RunError


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)


def test_without_a_token_authentication_is_off():
    assert authentication_mode("local") == authentication_mode("10.0.0.1:6379") == "disabled"


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_in_the_environment_is_used_for_other_clusters_only(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    assert authentication_mode("10.0.0.1:6379") == "token"
    assert authentication_mode("local") == "disabled"


def test_a_token_file_is_used(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert authentication_mode("auto") == "token"


def test_the_user_decides(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert authentication_mode("local") == "token"


def test_ray_train_knows_every_variable():
    """A renamed variable would be ignored without a word."""
    import ray.train.constants as old
    import ray.train.v2._internal.constants as new
    from ray._common.usage import usage_constants
    from ray._private import ray_constants
    from ray._private.accelerators import accelerator

    modules = (old, new, usage_constants, accelerator)
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    known |= {*vars(ray_constants), "RAY_worker_niceness"}  # that one Ray only shows in what it does
    ours = {*RAY_ENVIRONMENT, *GPU_ENVIRONMENT, *LOCAL_ENVIRONMENT, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"}
    assert ours <= known
    driven_by_driver = {name for name in ours if name in new.ENV_VARS_TO_PROPAGATE}
    assert {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_TRAIN_ENABLE_PRINT_PATCH"} <= driven_by_driver


def test_a_ray_that_does_not_start_is_told_in_a_line(monkeypatch):
    import ray

    def fail(**arguments):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(RunError, match="Ray did not start on this machine: The current node timed out"),
        connect("local"),
    ):
        pass
