"""The spaces that come with lowland: YAML files in the folders beside this one."""

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

FOLDERS = ("optimizers", "around", "schedules", "tasks")


@cache
def shipped() -> dict[str, Traversable]:
    """The files by the names that are given to `--space`."""
    root = files("lowland.search_spaces")
    found = [path for folder in FOLDERS for path in root.joinpath(folder).iterdir() if path.name.endswith(".yaml")]
    return {path.name.removesuffix(".yaml"): path for path in sorted(found, key=lambda path: path.name)}
