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
    """`scripts/test --full`: every case of the sharding table, about an hour."""
    parser.addoption("--full", action="store_true", help="run every case of the sharding table, about an hour")
