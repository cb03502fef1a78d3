"""What the tests with Ray share: a cluster, a prepared text, and a run that nothing disturbed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.corpus import prepared
from support.ray_runs import Run, recipe, run

from lowland.platform.cluster import connect


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that only start Ray themselves first: the cluster that the others share would be in their way."""
    sharing = {item.path for item in items if "cluster" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path in sharing)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local cluster for every training of these tests; a `train` in between uses it and leaves it."""
    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # workers import what is in tests/support
    patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("compiled") / "extensions"))
    with connect("local", cpus=4, gpus=0):
        yield
    patch.undo()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared text."""
    return prepared(tmp_path_factory.mktemp("text") / "data")


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of the session are."""
    return tmp_path_factory.mktemp("storage") / "runs"


@pytest.fixture(scope="session")
def whole(cluster: None, text: Path, storage: Path) -> Run:
    """A run that nothing disturbed."""
    return run(recipe(text, storage, "whole"))
