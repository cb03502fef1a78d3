"""Data sets of Hugging Face's hub: which commit a run reads, and their files on every node before it holds GPUs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lowland.platform.cluster import Cluster
from lowland.platform.recipe import ImageClassificationRecipe, Recipe
from lowland.trainers.errors import DataError, UserError
from lowland.trainers.recipe import ImageDataConfig

if TYPE_CHECKING:
    from lowland.trainers.data.images.hub import HubImages

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRIES = 3
"""A node that dies while it copies is no reason to end; what it copied stays."""


def with_commit(recipe: Recipe, held: Mapping[str, str] | None = None) -> Recipe:
    """The recipe with the commit of its data set of the hub, so that all workers and all resumes read the same images.

    Args:
        recipe: of any task.
        held: the fields of the recipe that the run had, as texts by dotted path; a run that goes on keeps its own
            commit, whatever has become of the branch or lies here by now, unless the recipe names another commit.

    Raises:
        DataError: there is no such data set, configuration or split, or the hub cannot be asked; or the run began
            with a file or folder that is not here.
    """
    if not isinstance(recipe, ImageClassificationRecipe):
        return recipe
    data = recipe.data
    had = held.get("data.hub.revision") if held and held.get("data.path") == data.path else None
    if had and _COMMIT.fullmatch(had) and not _COMMIT.fullmatch(data.hub.revision or ""):
        data = _at(data, had)
    if not data.on_hub:
        return recipe
    if had == "null" and data.hub.revision is None:
        raise _absent(data.path)
    from lowland.trainers.data.images.hub import find_images

    return recipe.model_copy(update={"data": _at(data, find_images(data.path, data.hub).commit)})


def _at(data: ImageDataConfig, commit: str) -> ImageDataConfig:
    return data.model_copy(update={"hub": data.hub.model_copy(update={"revision": commit})})


def require_settled(recipe: Recipe) -> None:
    """Refuses, on a worker, to take for a hub id what was a file or folder where the run began.

    Raises:
        DataError: it is not there on this node.
    """
    if isinstance(recipe, ImageClassificationRecipe) and recipe.data.on_hub and recipe.data.hub.revision is None:
        raise _absent(recipe.data.path)


def _absent(path: str) -> DataError:
    return DataError(
        f"data.path = {path}: there where the run began, and not on this node in {Path.cwd()}; give the path from the "
        "root, of a place that all nodes share"
    )


def fetch_data(recipe: Recipe, cluster: Cluster, console: Console) -> None:
    """Copies a data set of the hub into the cache of every node, or sees that it is there, while no GPU is held.

    Raises:
        UserError: a node cannot have it, or its columns are not those of the recipe.
    """
    if not isinstance(recipe, ImageClassificationRecipe) or not recipe.data.on_hub:
        return
    from lowland.trainers.data.images.hub import find_images
    from lowland.trainers.data.images.sources import Columns, check_columns

    found = find_images(recipe.data.path, recipe.data.hub)
    console.print(f"data set {found.name} at {found.commit[:12]}: fetching what is not in the cache", highlight=False)
    train, _ = found.download()
    try:
        check_columns(train, Columns.of(recipe.data))
    except DataError as error:
        raise UserError(f"data.path = {found.name}: {error}") from None
    if not cluster.started:
        _fetch_everywhere(found)


def _fetch_everywhere(found: "HubImages") -> None:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from lowland.platform.preflight import nodes

    task = ray.remote(num_cpus=0, max_retries=_TRIES)(_fetched)
    running = {}
    for node in nodes():
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})"
        running[name] = task.options(scheduling_strategy=where).remote(found)
    problems = list[str]()
    for name, reference in running.items():
        try:
            problem = ray.get(reference)
        except RayError as error:
            problem = f"it could not be fetched there: {str(error).strip().splitlines()[-1]}"
        if problem is not None:
            problems.append(f"node {name}: {problem}")
    if problems:
        raise UserError("\n".join(problems))


def _fetched(found: "HubImages") -> str | None:
    """Runs on a node: why the files cannot be had there; None if they are there now."""
    try:
        found.download()
    except DataError as error:
        return str(error)
    return None
