"""Processes and data that the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.corpus import prepared
from support.processes import Ranks


@pytest.fixture(scope="session")
def one() -> Iterator[Ranks]:
    """A process group of one."""
    with Ranks(1) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def two() -> Iterator[Ranks]:
    """Two ranks."""
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def four() -> Iterator[Ranks]:
    """Four ranks."""
    with Ranks(4) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared text."""
    return prepared(tmp_path_factory.mktemp("text") / "data")
