"""Where checkpoints lie: a folder of folders on any file system, each committed by its manifest.

A checkpoint is `step-00000100/` with a part per rank and, written last, `manifest.json`.  A folder
without a manifest is what a killed writer left; it is never read and is removed by the next save.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from pyarrow import fs

from lowland.trainers.checkpoints.manifest import CheckpointManifest, FileEntry
from lowland.trainers.data.sources import open_filesystem
from lowland.trainers.errors import DataError

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d+)")


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        location: a local path or any URI that pyarrow.fs or fsspec can open.
    """

    def __init__(self, location: str) -> None:
        self._fs, root = open_filesystem(location)
        self._root = root.rstrip("/")

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        return sorted(step for step, committed in self._folders().items() if committed)

    def remove_uncommitted(self) -> None:
        """Removes what killed writers left."""
        for step, committed in self._folders().items():
            if not committed:
                self.remove(step)

    def _folders(self) -> dict[int, bool]:
        """The steps that have a folder, and whether it is committed."""
        folders: dict[int, bool] = {}
        for info in self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True, recursive=True)):
            path = PurePosixPath(info.path)
            # Object stores may list files only, other systems empty folders too.
            folder = path if info.type == fs.FileType.Directory else path.parent
            if match := _FOLDER.fullmatch(folder.name):
                step = int(match[1])
                folders[step] = folders.get(step, False) or path.name == MANIFEST
        return folders

    def manifest(self, step: int) -> CheckpointManifest:
        """The manifest of a committed checkpoint.

        Raises:
            DataError: it cannot be read or is not one.
        """
        path = f"{self.path(step)}/{MANIFEST}"
        try:
            with self._fs.open_input_stream(path) as stream:
                return CheckpointManifest.model_validate_json(stream.read())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a readable checkpoint manifest: {error}") from error

    def path(self, step: int) -> str:
        """The folder of a checkpoint, in the store's file system."""
        return f"{self._root}/step-{step:08d}"

    def begin(self, step: int) -> None:
        """Makes an empty folder for a checkpoint, removing what an earlier writer left there."""
        self.remove(step)
        self._fs.create_dir(self.path(step), recursive=True)

    def add(self, step: int, name: str, write: Callable[[Path], None]) -> FileEntry:
        """Writes one file of a checkpoint that has begun, by `write` to a local path."""
        if isinstance(self._fs, fs.LocalFileSystem):
            path = Path(self.path(step)) / name
            write(path)
            _flush(path)
            return _entry(path)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            write(path)
            fs.copy_files(str(path), f"{self.path(step)}/{name}", fs.LocalFileSystem(), self._fs)
            return _entry(path)

    def commit(self, step: int, manifest: CheckpointManifest) -> None:
        """Writes the manifest, under another name first where the file system can rename."""
        path = f"{self.path(step)}/{MANIFEST}"
        draft = f"{path}.draft" if isinstance(self._fs, fs.LocalFileSystem) else path
        with self._fs.open_output_stream(draft) as stream:
            stream.write(manifest.model_dump_json(indent=1).encode())
        if draft != path:
            _flush(Path(draft))
            self._fs.move(draft, path)
            _flush(Path(path).parent)

    def holds(self, step: int, entry: FileEntry) -> bool:
        """Whether a file of a checkpoint is as it was written; it is read once and not copied.

        Raises:
            OSError: it cannot be read.
        """
        digest = hashlib.sha256()
        with self._fs.open_input_stream(f"{self.path(step)}/{entry.name}", compression=None) as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        return digest.hexdigest() == entry.sha256

    def remove(self, step: int) -> None:
        """Removes a checkpoint, its manifest first, so that half a removal leaves none."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self.path(step)}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(self.path(step))

    @contextlib.contextmanager
    def local(self, step: int) -> Iterator[Path]:
        """The checkpoint's folder as a local one: itself, or a temporary copy of a remote one."""
        if isinstance(self._fs, fs.LocalFileSystem):
            yield Path(self.path(step))
            return
        with tempfile.TemporaryDirectory() as scratch:
            fs.copy_files(self.path(step), scratch, self._fs, fs.LocalFileSystem())
            yield Path(scratch)


def _entry(path: Path) -> FileEntry:
    return FileEntry(name=path.name, size=path.stat().st_size, sha256=_digest(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
