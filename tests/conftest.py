"""For all tests."""

import os
import signal

import pytest
from hypothesis import settings

# Models here are so small that handing work to a second thread takes longer than the work; read when torch starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with Ctrl-C ignored, and commands started by tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no reason to fail.
settings.register_profile("lowland", deadline=None)
settings.load_profile("lowland")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`scripts/test --full`: every case of the sharding table, and tests marked `full`; about an hour."""
    parser.addoption("--full", action="store_true", help="run every case, not only those that meet every pair; an hour")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked `full`, unless it is asked for; puts what needs ranks last.

    Ranks stay to the end of the session, each with a group of gloo's threads for every training that it made.
    """
    items.sort(key=lambda item: "distributed" in item.path.parts)
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("full")]
