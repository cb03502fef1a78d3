"""Two promises of the layout; breaking either breaks every import on every worker."""

import os
import platform
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("root", ["platform", "trainers", "search_spaces"])
def test_source_roots_are_not_packages(root):
    assert not (ROOT / root / "__init__.py").exists()
    assert not (ROOT / root / "lowland" / "__init__.py").exists()
    assert {path.name for path in (ROOT / root).iterdir()} - {"README.md", "__pycache__"} == {"lowland"}


def test_the_standard_library_platform_is_not_shadowed():
    assert Path(platform.__file__).parent == Path(os.__file__).parent


def test_tests_are_not_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
