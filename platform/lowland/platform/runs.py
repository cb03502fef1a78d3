"""The run folder and its record.

    <storage>/<name>/run.json      who this run is and how it stands (`RunRecord`)
                     recipe.yaml   the recipe as it was resolved
                     checkpoints/  model/  logs/

A name stands for one run for ever; `lowland.platform.resume` decides whether a command may continue it.
"""

import difflib
import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

RECORD = "run.json"
RECIPE = "recipe.yaml"
SUBFOLDERS = ("checkpoints", "model", "logs")

# The same run may be reached by another path: these fields of a recipe say where it is, not what it is.
PLACE = ("name", "storage")

Fields = Mapping[str, str | int | float]
"""Every field of a resolved recipe by dotted path, as `lowland.platform.recipe.dump.flatten` gives them."""

Status = Literal["created", "running", "finished", "failed", "interrupted"]


class Driver(BaseModel):
    """The process that leads a run."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    started: float
    """Start of the process in seconds since 1970: tells it from a later process with the same id."""

    @classmethod
    def current(cls) -> "Driver":
        """This process."""
        import psutil

        process = psutil.Process()
        return cls(host=socket.gethostname(), pid=process.pid, started=process.create_time())

    def local(self) -> bool:
        """Whether the process is, or was, one of this machine."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Whether the process runs; on another machine, which cannot be seen from here, it counts as dead."""
        import psutil

        if not self.local():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.Error:
            return False


def as_text(recipe: Fields) -> dict[str, str]:
    """The fields as `run.json` holds them."""
    return {path: str(value) for path, value in recipe.items()}


def recipe_digest(recipe: Fields) -> str:
    """sha256 over the fields that make a recipe what it is: all but the run's name and place."""
    fields = {path: value for path, value in as_text(recipe).items() if path not in PLACE}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class RunRecord(BaseModel):
    """What `run.json` holds."""

    model_config = ConfigDict(frozen=True)

    name: str
    status: Status = "created"
    recipe: dict[str, str]
    """Every field of the resolved recipe, by dotted path."""
    recipe_digest: str
    """What `recipe_digest` gives for it."""
    tracking_uri: str | None = None
    """MLflow store of the run, without its password."""
    experiment: str | None = None
    mlflow_run_id: str | None = None
    attempts: int = 0
    """How often a command has started or continued the run."""
    driver: Driver | None = None
    """The process that leads the latest attempt."""
    created_at: datetime
    updated_at: datetime

    @classmethod
    def new(cls, name: str, recipe: Fields) -> "RunRecord":
        """The record of a run that does not exist yet."""
        now = datetime.now(UTC)
        digest = recipe_digest(recipe)
        return cls(name=name, recipe=as_text(recipe), recipe_digest=digest, created_at=now, updated_at=now)

    def next_attempt(self, recipe: Fields) -> "RunRecord":
        """This run, led by this process from now on, with the recipe now in force."""
        in_force = {"recipe": as_text(recipe), "recipe_digest": recipe_digest(recipe)}
        return self.with_(status="running", driver=Driver.current(), attempts=self.attempts + 1, **in_force)

    def with_(self, **changes: Any) -> "RunRecord":
        """This record with some fields changed, and the time of the change."""
        return RunRecord.model_validate({**self.model_dump(), **changes, "updated_at": datetime.now(UTC)})


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, on any file system that pyarrow or fsspec knows."""

    filesystem: "FileSystem"
    path: str
    """Path of the folder within the file system."""
    uri: str
    """The folder as the user may name it: an absolute local path, or a URI."""
    local: Path | None
    """The folder as a local path; None on other file systems."""

    @classmethod
    def open(cls, storage: str, name: str) -> "RunFolder":
        """The folder of a run, whether or not it exists.

        Args:
            storage: folder or URI that holds run folders; a relative path counts from the working directory.
            name: name of the run.

        Raises:
            UserError: no file system belongs to the URI, or it cannot be opened.
        """
        filesystem, root, local = open_filesystem(storage)
        uri = str(local / name) if local else f"{storage.rstrip('/')}/{name}"
        return cls(filesystem, f"{root.rstrip('/')}/{name}", uri, local / name if local else None)

    def file(self, *parts: str) -> str:
        """Path of a file of the run within `filesystem`."""
        return "/".join((self.path, *parts))

    def exists(self) -> bool:
        """Whether a run lives here."""
        from pyarrow.fs import FileType

        return bool(self.filesystem.get_file_info(self.file(RECORD)).type == FileType.File)

    def create(self) -> None:
        """Makes the folder and its subfolders.

        Raises:
            UserError: the folder holds files, but no run.
        """
        from pyarrow.fs import FileSelector, FileType

        # Empty subfolders are what a command leaves that was killed before it wrote the record; a file that it was
        # writing under its temporary name is another such thing.
        below = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True, recursive=True))
        files = [info.base_name for info in below if info.type == FileType.File and not info.base_name.endswith(".tmp")]
        if files and not self.exists():
            raise UserError(f"{self.uri} holds files but no run ({files[0]}, ...); choose another name")
        for folder in SUBFOLDERS:
            self.filesystem.create_dir(self.file(folder), recursive=True)

    def read(self) -> RunRecord | None:
        """The run's record; None if there is no run here.

        Raises:
            UserError: `run.json` is damaged.
        """
        if not self.exists():
            return None
        try:
            return RunRecord.model_validate_json(self.read_bytes(RECORD))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{self.uri}/{RECORD} cannot be read ({first['msg']}); restore it or move the folder"
            ) from None

    def write(self, record: RunRecord) -> None:
        """Writes the record: a reader sees the old one or the new one, never a part."""
        self.write_bytes(record.model_dump_json(indent=2).encode() + b"\n", RECORD)

    def read_bytes(self, *parts: str) -> bytes:
        """Content of a file of the run.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self.filesystem.open_input_stream(self.file(*parts), compression=None) as stream:
            return bytes(stream.read())

    def write_bytes(self, content: bytes, *parts: str) -> None:
        """Writes a file of the run atomically; its folder must exist."""
        target = self.file(*parts)
        # The temporary name differs between processes: two writers never share a half-written file.
        temporary = f"{target}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}.tmp"
        with self.filesystem.open_output_stream(temporary, compression=None) as stream:
            stream.write(content)
        self.filesystem.move(temporary, target)


def open_filesystem(uri: str) -> "tuple[FileSystem, str, Path | None]":
    """The file system of a URI, the path within it, and the same as a local path if it is one.

    Raises:
        UserError: no file system belongs to the URI, or it cannot be opened.
    """
    from pyarrow import fs

    if "://" not in uri:
        local = Path(uri).expanduser().absolute()
        return fs.LocalFileSystem(), str(local), local
    try:
        filesystem, path = _from_uri(uri)
    except Exception as error:
        raise UserError(f"storage {uri!r} cannot be opened: {error}") from error
    return filesystem, path, Path(path) if uri.startswith("file://") else None


def _from_uri(uri: str) -> "tuple[FileSystem, str]":
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]
    except (ValueError, NotImplementedError):  # not one of Arrow's own: whatever fsspec has installed
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(uri)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def run_names(storage: str) -> list[str]:
    """Names of the runs in a storage folder, sorted."""
    from pyarrow.fs import FileSelector, FileType

    filesystem, root, _ = open_filesystem(storage)
    found = filesystem.get_file_info(FileSelector(root, allow_not_found=True))
    folders = sorted(info.base_name for info in found if info.type == FileType.Directory)
    return [name for name in folders if RunFolder.open(storage, name).exists()]


def existing_run(storage: str, name: str) -> tuple[RunFolder, RunRecord]:
    """The folder and record of a run that must exist.

    Raises:
        UserError: there is no such run; the message names the nearest.
    """
    folder = RunFolder.open(storage, name)
    record = folder.read()
    if record is None:
        names = run_names(storage)
        near = difflib.get_close_matches(name, names, n=3) or names[:5]
        hint = f"; there is {', '.join(near)}" if near else "; that folder holds no runs"
        raise UserError(f"no run {name!r} in {storage}{hint}")
    return folder, record
