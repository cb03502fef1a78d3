"""What pre-flight looks at on one node; runs there as a Ray task, or in this process for a local cluster."""

import hashlib
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from lowland.platform.runs import open_filesystem
from lowland.trainers.errors import UserError

COMPARED_PACKAGES = ("ray", "lowland", "torch", "deepspeed", "transformers")


@dataclass(frozen=True)
class NodeRequest:
    """What to check on a node."""

    storage: str
    """Folder or URI of run folders, absolute."""
    token: str
    """Name and content of the marker file that the driver wrote into the storage."""
    manifest: str
    """Path of the data's manifest."""
    manifest_sha256: str
    """Empty if the driver does not see it either: that is one problem, not one per node."""
    files: dict[str, int | None]
    """Files that must exist, with their size in bytes if that is known."""
    tracking_uri: str | None
    """MLflow store to reach from the node; None to leave it out."""
    experiment: str
    packages: dict[str, str] = field(default_factory=dict)
    """Packages that only some recipes need, each with the command that installs it."""


@dataclass(frozen=True)
class NodeReport:
    """What was found."""

    versions: dict[str, str | None]
    """Of Python and `COMPARED_PACKAGES`; None where a package is not installed."""
    problems: tuple[str, ...]
    wrote: bool
    """Whether a file of this node's is in the storage, for the driver to look for."""


def check_node(request: NodeRequest, name: str) -> NodeReport:
    """Checks everything that must be seen or written from this node; raises nothing.

    Args:
        request: what to check.
        name: name of the node's own file beside the marker.
    """
    storage, wrote = _storage(request, name)
    problems = [*storage, *_data(request)]
    missing = {name: install for name, install in request.packages.items() if find_spec(name) is None}
    problems.extend(f"{name} is not installed: {install}" for name, install in missing.items())
    if request.tracking_uri is not None:
        problems.extend(tracking_problems(request.tracking_uri, request.experiment))
    return NodeReport(installed_versions(), tuple(problems), wrote)


def installed_versions() -> dict[str, str | None]:
    """Versions that must be the same on all nodes."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in COMPARED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def marker(token: str, name: str = "driver") -> str:
    """Name of a marker file in the storage folder."""
    return f".preflight-{token}-{name}"


def _storage(request: NodeRequest, name: str) -> tuple[list[str], bool]:
    try:
        filesystem, root, local = open_filesystem(request.storage)
        with filesystem.open_output_stream(f"{root}/{marker(request.token, name)}") as stream:
            stream.write(request.token.encode())
    except (UserError, OSError) as error:
        fix = "make it writable there, or set storage to a place that all nodes share"
        return [f"storage {request.storage} cannot be written: {_line(error)}; {fix}"], False
    try:
        with filesystem.open_input_stream(f"{root}/{marker(request.token)}") as stream:
            seen = bytes(stream.read()).decode()
    except OSError:
        seen = ""
    if seen == request.token:
        return [], True
    kind = "a folder of that node alone" if local else "another place than the driver's"
    return [
        f"storage {request.storage} is {kind}: a file written elsewhere is not there; set storage to a folder that "
        "is mounted on every node, or to a bucket (s3://, gs://)"
    ], True


def _data(request: NodeRequest) -> list[str]:
    problems = []
    for path, size in request.files.items():
        try:
            filesystem, inner, _ = open_filesystem(path)
            info = filesystem.get_file_info(inner)
        except (UserError, OSError) as error:
            problems.append(f"{path} cannot be read: {_line(error)}")
            continue
        if not info.is_file:
            problems.append(f"{path} is not there; put data and models where every node sees them")
        elif size is not None and info.size != size:
            problems.append(f"{path} has {info.size} bytes, elsewhere {size}; copy the data again")
    if request.manifest_sha256 and not any(request.manifest in problem for problem in problems):
        problems.extend(_manifest(request))
    return problems


def _manifest(request: NodeRequest) -> list[str]:
    filesystem, inner, _ = open_filesystem(request.manifest)
    with filesystem.open_input_stream(inner) as stream:
        digest = hashlib.sha256(bytes(stream.read())).hexdigest()
    if digest == request.manifest_sha256:
        return []
    return [f"{request.manifest} is another one than the driver's; copy the prepared data again"]


def tracking_problems(uri: str, experiment: str) -> list[str]:
    """Why the MLflow store cannot be used from here."""
    from lowland.platform.tracking.store import check_store

    try:
        check_store(uri, experiment)
    except UserError as error:
        return [str(error)]
    return []


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
