"""Everything that can be known to fail before GPUs are held, in one message."""

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.platform.cluster import Cluster, checkout_modules
from lowland.platform.node_checks import (
    NodeReport,
    NodeRequest,
    check_node,
    installed_versions,
    marker,
    tracking_problems,
)
from lowland.platform.recipe import CausalLMRecipe, ImageClassificationRecipe, Recipe
from lowland.platform.resource_checks import resource_problems
from lowland.platform.runs import RunFolder, open_filesystem
from lowland.trainers.errors import DataError, RecipeError, UserError
from lowland.trainers.recipe import ImageDataConfig
from lowland.trainers.recipe.image_model import INSTALL_TIMM

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_NODE_SECONDS = 90.0
# Long enough for a node to import MLflow, and to unpack a shipped checkout first.


def preflight(recipe: Recipe, cluster: Cluster, run_folder: RunFolder, tracking_uri: str) -> None:
    """Checks the cluster, versions, storage, tracking store, data and model, from every node.

    Args:
        recipe: the run.
        cluster: a live connection.
        run_folder: where the run is going to be.
        tracking_uri: the MLflow store in force.

    Raises:
        UserError: naming everything that was found, each with the way out.
    """
    problems = list(resource_problems(recipe, nodes(), growth()))
    files, manifest, data_problems = _data_files(recipe)
    problems.extend(data_problems)
    # From here first, and from the nodes only then: processes that create an SQLite store at once disturb each other.
    store_problems = tracking_problems(tracking_uri, recipe.tracking.experiment)
    problems.extend(store_problems)
    store = None if store_problems or cluster.started else tracking_uri
    storage = run_folder.uri.rstrip("/").rpartition("/")[0]
    try:
        with _marked(storage) as (token, filesystem, root):
            request = NodeRequest(
                storage,
                token,
                *manifest,
                files=files,
                tracking_uri=store,
                experiment=recipe.tracking.experiment,
                packages=_packages(recipe),
            )
            reports = _reports(cluster, request)
            problems.extend(report_problems(reports))
            problems.extend(_unseen(reports, token, filesystem, root, storage))
    except OSError as error:
        problems.append(f"storage {storage} cannot be written from here: {error}; choose another with storage")
    if problems:
        plural = "s" if len(problems) > 1 else ""
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"pre-flight found {len(problems)} problem{plural}; nothing was started:\n{listed}")


def nodes() -> list[dict[str, Any]]:
    """The cluster's live nodes, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def growth() -> Mapping[str, float] | None:
    """The most of each resource that an autoscaler may bring the cluster to; None if there is no autoscaler."""
    from ray._private.state import state

    most: Mapping[str, float] | None = state.get_max_resources_from_cluster_config()
    return most


def report_problems(reports: Mapping[str, NodeReport | str]) -> Iterator[str]:
    """Problems of nodes, each once, with the nodes that have it; and versions that differ from the driver's."""
    by_problem: dict[str, list[str]] = {}
    here = installed_versions()
    shipped = {"lowland"} if checkout_modules() else set()
    for node, report in reports.items():
        if isinstance(report, str):
            by_problem.setdefault(report, []).append(node)
            continue
        for package, found in report.versions.items():
            if found != here[package] and package not in shipped:
                text = (
                    f"{package} is {found or 'not installed'}, on the driver {here[package]}; install the same version"
                )
                by_problem.setdefault(text, []).append(node)
        for problem in report.problems:
            by_problem.setdefault(problem, []).append(node)
    for problem, where in by_problem.items():
        if len(reports) == 1:
            yield problem
        else:
            yield f"{'every node' if len(where) == len(reports) else 'node ' + ', '.join(where)}: {problem}"


def _data_files(recipe: Recipe) -> tuple[dict[str, int | None], tuple[str, str], list[str]]:
    """Files every node must see, the manifest with its sha256, and what is wrong with them here already."""
    found = _text_files(recipe) if isinstance(recipe, CausalLMRecipe) else _image_files(recipe)
    files, manifest, problems = found
    if recipe.model.path and (model := Path(recipe.model.path).expanduser().absolute()).is_dir():
        weights = {str(path): path.stat().st_size for path in model.glob("*.safetensors")}
        files |= {str(model / "config.json"): None, **weights}
        if not weights:
            problems.append(f"model.path: {model} holds no safetensors file; save the model as safetensors")
    if (name := _timm_name(recipe)) is not None:
        problems.extend(_timm_problems(name))
    if isinstance(recipe, ImageClassificationRecipe) and recipe.augmentation.transform is not None:
        problems.extend(_transform_problems(recipe.augmentation.transform, recipe.data))
    return files, manifest, problems


def _packages(recipe: Recipe) -> dict[str, str]:
    """Packages of which this recipe needs each on every node, and how they come there."""
    found = {"timm": INSTALL_TIMM} if _timm_name(recipe) is not None else {}
    if isinstance(recipe, ImageClassificationRecipe) and (transform := recipe.augmentation.transform) is not None:
        module = transform.partition(":")[0].partition(".")[0]
        found[module] = f"augmentation.transform ({transform}) needs it; install its package there or set PYTHONPATH"
    return found


def _timm_name(recipe: Recipe) -> str | None:
    return recipe.model.timm if isinstance(recipe, ImageClassificationRecipe) else None


def _timm_problems(name: str) -> list[str]:
    from lowland.trainers.models.timm_networks import require_timm  # imports torch, as timm itself does

    try:
        require_timm(name)
    except RecipeError as error:
        return [str(error)]
    return []


def _transform_problems(transform: str, data: ImageDataConfig) -> list[str]:
    """What shows of a transform of one's own when it is imported here and, if the images' size is known, tried."""
    from lowland.trainers.data.images.own import own_transform, tried

    try:
        own_transform(transform)
        if data.size is not None:
            tried(transform, data.channels, data.size)
    except RecipeError as error:
        return [str(error)]
    return []


def _image_files(recipe: ImageClassificationRecipe) -> tuple[dict[str, int | None], tuple[str, str], list[str]]:
    from lowland.trainers.data.images.sources import Columns, check_columns, image_files

    files: dict[str, int | None] = {}
    problems: list[str] = []
    # What is on the hub is fetched once everything else is right.
    here = recipe.data.path if not recipe.data.on_hub else None
    for name, path in (("path", here), ("held_out_path", recipe.data.held_out_path)):
        try:
            if path is not None:
                files |= image_files(path)
                check_columns(path, Columns.of(recipe.data))
        except DataError as error:
            problems.append(f"data.{name}: {error}")
    return files, ("", ""), problems


def _text_files(recipe: CausalLMRecipe) -> tuple[dict[str, int | None], tuple[str, str], list[str]]:
    from lowland.trainers.data.manifest import FILE_NAME
    from lowland.trainers.data.store import manifest_of

    # What every node finds, whatever its working directory.
    remote = "://" in recipe.data.path
    place = recipe.data.path.rstrip("/") if remote else str(Path(recipe.data.path).expanduser().absolute())
    files: dict[str, int | None] = {}
    problems: list[str] = []
    digest = ""
    try:
        data = manifest_of(place)
        for name in ("train", "held_out"):
            data.split(name, place)
        filesystem, root, _ = open_filesystem(place)
        with filesystem.open_input_stream(f"{root}/{FILE_NAME}") as stream:
            digest = hashlib.sha256(bytes(stream.read())).hexdigest()
        files[f"{place}/{FILE_NAME}"] = None
        for shard in (shard for split in data.splits.values() for shard in split.shards):
            info = filesystem.get_file_info(f"{root}/{shard.file}")
            files[f"{place}/{shard.file}"] = info.size if info.is_file else None
    except DataError as error:
        problems.append(f"data.path: {error}")
    return files, (f"{place}/{FILE_NAME}", digest), problems


@contextmanager
def _marked(storage: str) -> "Iterator[tuple[str, FileSystem, str]]":
    """A marker file in the storage, and no file of ours left there afterwards."""
    from pyarrow.fs import FileSelector

    token = secrets.token_hex(8)
    filesystem, root, _ = open_filesystem(storage)
    filesystem.create_dir(root, recursive=True)
    with filesystem.open_output_stream(f"{root}/{marker(token)}") as stream:
        stream.write(token.encode())
    try:
        yield token, filesystem, root
    finally:
        for info in filesystem.get_file_info(FileSelector(root)):
            if info.base_name.startswith(f".preflight-{token}-"):
                filesystem.delete_file(info.path)


def _reports(cluster: Cluster, request: NodeRequest) -> dict[str, NodeReport | str]:
    """Every node's report, or in one line why there is none; a cluster of this process is looked at directly."""
    if cluster.started:
        return {"local": check_node(request, "local")}
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(check_node)
    running = {}
    for node in nodes():
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        reference = task.options(scheduling_strategy=where).remote(request, node["NodeID"][:12])
        running[reference] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})"
    ray.wait(list(running), num_returns=len(running), timeout=_NODE_SECONDS)
    reports: dict[str, NodeReport | str] = {}
    for reference, name in running.items():
        try:
            reports[name] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            reports[name] = f"no answer in {_NODE_SECONDS:g} s; see the node with: ray status"
        except RayError as error:
            reports[name] = f"a check could not run there: {str(error).strip().splitlines()[-1]}"
    return reports


def _unseen(
    reports: Mapping[str, NodeReport | str], token: str, filesystem: "FileSystem", root: str, storage: str
) -> Iterator[str]:
    """Files that nodes wrote and that are not here: what `check_node` sees, from the other side."""
    from pyarrow.fs import FileSelector

    written = [node for node, report in reports.items() if isinstance(report, NodeReport) and report.wrote]
    here = [info for info in filesystem.get_file_info(FileSelector(root)) if f"-{token}-" in info.base_name]
    blamed = any("storage" in p for r in reports.values() if isinstance(r, NodeReport) for p in r.problems)
    if len(here) < len(written) + 1 and not blamed:
        yield f"storage {storage}: files of other nodes do not arrive here; set storage to a place that all nodes share"
