"""Sources: from what a user names (files, folders, globs, URIs, `stdlib`) to files with a format."""

import os
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pyarrow import fs

from lowland.trainers.errors import DataError

Format = Literal["text", "jsonl", "parquet", "arrow"]

STDLIB = "stdlib"
"""Names the .py sources of this machine's Python standard library."""

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_DEFAULT_INCLUDE = ("*.txt", "*.md", *(f"*{suffix}" for suffix in _FORMATS))
_SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
_STDLIB_WITHOUT = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class SourceFile:
    """A file to read."""

    path: str
    """Local path or URI, as `open_filesystem` takes it."""
    size: int
    """Bytes as stored."""
    format: Format
    compression: str | None
    """`gzip`, `zstd` or None."""


def list_files(source: str, include: Sequence[str] = ()) -> list[SourceFile]:
    """The files of one source, sorted by path.

    Args:
        source: a file, a folder (read with all below it), a glob, a URI of one of these, or `stdlib`.
        include: glob patterns that files of a folder must match, on their name or their path within it;
            by default text, Markdown, JSON lines, Parquet and Arrow files, compressed or not.

    Raises:
        DataError: nothing there, or nothing there matches.
    """
    if source == STDLIB:
        return _stdlib_files()
    filesystem, path = open_filesystem(source)
    infos = _infos(filesystem, path, source)
    patterns = tuple(include) or _DEFAULT_INCLUDE
    is_folder = filesystem.get_file_info(path).type == fs.FileType.Directory
    if is_folder:
        infos = [info for info in infos if _included(_below(info.path, path), patterns)]
    prefix, query = _uri_ends(source)
    files = [_source_file(prefix, info.path, query, info.size) for info in infos]
    if not files:
        reason = f"no file matches --include {' '.join(patterns)}" if is_folder else "no such file or folder"
        raise DataError(f"source '{source}': {reason}")
    return sorted(files, key=lambda file: file.path)


def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a local path or URI, and the path in it; pyarrow's filesystems first, then fsspec's.

    Raises:
        DataError: no filesystem for this URI, or it cannot be reached.
    """
    if not is_uri(location):
        return fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    if location.startswith("file://"):
        return fs.LocalFileSystem(), location.removeprefix("file://")
    try:
        return _remote_filesystem(location)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"'{location}': {error}") from error


def is_uri(location: str) -> bool:
    """Whether this is `scheme://…` and not a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location) is not None


def _remote_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    import pyarrow as pa

    try:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(location)
        return found
    except pa.ArrowInvalid:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(location)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _uri_ends(source: str) -> tuple[str, str]:
    """What stands before and after the path in a URI, to make URIs of the files found; nothing for local files."""
    if not is_uri(source) or source.startswith("file://"):
        return "", ""
    _, mark, query = source.partition("?")
    return source.split("://", 1)[0] + "://", mark + query


def _infos(filesystem: fs.FileSystem, path: str, source: str) -> list[Any]:
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound and any(character in path for character in "*?["):
        return list(_glob(filesystem, path))
    if info.type == fs.FileType.NotFound:
        raise DataError(f"source '{source}': no such file or folder")
    return [info] if info.type == fs.FileType.File else list(_walk(filesystem, path))


def _walk(filesystem: fs.FileSystem, folder: str, *, recursive: bool = True) -> Iterator[Any]:
    """All files below a folder, but for hidden folders and caches."""
    selector = fs.FileSelector(folder, recursive=recursive)
    for info in filesystem.get_file_info(selector):
        parents = _below(info.path, folder).parts[:-1]
        skipped = any(part.startswith(".") or part in _SKIPPED_FOLDERS for part in parents)
        if info.type == fs.FileType.File and not skipped:
            yield info


def _glob(filesystem: fs.FileSystem, pattern: str) -> Iterator[Any]:
    """Files that match; `*` and `?` stay within a folder, `**` does not."""
    parts = PurePosixPath(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if any(character in part for character in "*?["))
    base = str(PurePosixPath(*parts[:fixed]))
    if filesystem.get_file_info(base).type != fs.FileType.Directory:
        return
    recursive = parts[fixed:] != parts[-1:] or parts[-1] == "**"
    for info in _walk(filesystem, base, recursive=recursive):
        if _matches(_below(info.path, base).parts, parts[fixed:]):
            yield info


def path_matches(path: PurePosixPath, pattern: PurePosixPath) -> bool:
    """Whether a path matches a glob pattern, in which `*` and `?` stay within a folder and `**` does not."""
    return _matches(path.parts, pattern.parts)


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[i:], patterns[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _below(path: str, folder: str) -> PurePosixPath:
    return PurePosixPath(path).relative_to(folder)


def _included(path: PurePosixPath, patterns: Iterable[str]) -> bool:
    names = {path.name, path.stem if path.suffix in _COMPRESSIONS else path.name, str(path)}
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def _source_file(prefix: str, path: str, query: str, size: int) -> SourceFile:
    name = PurePosixPath(path)
    compression = _COMPRESSIONS.get(name.suffix)
    suffix = PurePosixPath(name.stem).suffix if compression else name.suffix
    return SourceFile(prefix + path + query, size, _FORMATS.get(suffix.lower(), "text"), compression)


def _stdlib_files() -> list[SourceFile]:
    root = Path(sysconfig.get_path("stdlib"))
    paths: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _STDLIB_WITHOUT]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    if not paths:
        raise DataError(f"source '{STDLIB}': this Python has no .py sources in {root}; name a folder with text instead")
    return [SourceFile(str(path), path.stat().st_size, "text", None) for path in sorted(paths)]
