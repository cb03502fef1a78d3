"""Where prepared data is: a local folder, or a URI whose copy is kept on this machine."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from lowland.trainers.data.manifest import FILE_NAME, Manifest
from lowland.trainers.data.shards import file_sha256
from lowland.trainers.data.sources import is_uri, open_filesystem
from lowland.trainers.errors import DataError


def local_folder(location: str | Path) -> Path:
    """The local folder of prepared data; only local files can be memory-mapped.

    Data at a URI is copied, checked against its manifest, into $LOWLAND_CACHE (~/.cache/lowland)
    under its digest, once per machine: other processes wait for the first.

    Raises:
        DataError: the URI cannot be read, holds no prepared data, or a shard arrived damaged.
    """
    if not is_uri(str(location)):
        return Path(location).expanduser()
    filesystem, path = open_filesystem(str(location))
    manifest = _read_manifest(filesystem, path, str(location))
    cache = Path(os.environ.get("LOWLAND_CACHE", "~/.cache/lowland")).expanduser() / "data"
    folder = cache / manifest.digest
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _copy(filesystem, path, manifest, folder)
    return folder


def manifest_of(location: str | Path) -> Manifest:
    """The manifest of prepared data in a folder or at a URI, of which nothing else is read.

    Raises:
        DataError: no prepared data are there.
    """
    if not is_uri(str(location)):
        return Manifest.read(Path(location).expanduser())
    filesystem, path = open_filesystem(str(location))
    return _read_manifest(filesystem, path, str(location))


def _read_manifest(filesystem: fs.FileSystem, path: str, location: str) -> Manifest:
    try:
        with filesystem.open_input_stream(f"{path}/{FILE_NAME}", compression=None) as stream:
            text = stream.read().decode()
    except OSError as error:
        raise DataError(f"{location}: no {FILE_NAME} can be read here ({error})") from error
    return Manifest.parse(text, f"{location}/{FILE_NAME}")


def _copy(filesystem: fs.FileSystem, path: str, manifest: Manifest, folder: Path) -> None:
    arriving = folder.with_suffix(".partial")
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir()
    for info in manifest.splits.values():
        for shard in info.shards:
            target = arriving / shard.file
            fs.copy_files(f"{path}/{shard.file}", str(target), filesystem, fs.LocalFileSystem())
            if file_sha256(target) != shard.sha256:
                raise DataError(
                    f"{path}/{shard.file}: its sha256 is not the manifest's; copy or prepare the data again"
                )
    manifest.write(arriving)
    arriving.rename(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
