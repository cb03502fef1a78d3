"""Work units: how the inputs are cut into parts, by the inputs alone, so that workers only share them out."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from lowland.trainers.data.manifest import SplitName
from lowland.trainers.data.sources import SourceFile, open_filesystem
from lowland.trainers.errors import DataError

UNIT_BYTES = 16 << 20
_MAX_UNIT_BYTES = 256 << 20
_UNITS = 4096
"""Beyond this many units they grow, up to the largest size: each unit ends with a shard of its own."""


@dataclass(frozen=True)
class Part:
    """A file or a range of it."""

    source: int
    """Index of the source that the file belongs to."""
    file: SourceFile
    start: int = 0
    """First byte (JSON lines: of the lines that begin in the range) or row group (Parquet)."""
    end: int | None = None
    """End of the range; None is the end of the file."""
    size: int = 0
    """Bytes as stored, for progress."""


@dataclass(frozen=True)
class Unit:
    """What one task prepares, and what never depends on how many tasks run at a time."""

    index: int
    split: SplitName | None
    """The split of all its documents; None tells documents apart by their hash."""
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes as stored."""
        return sum(part.size for part in self.parts)


def unit_bytes_for(total: int) -> int:
    """The size of a unit for inputs of this many bytes."""
    return min(max(UNIT_BYTES, total // _UNITS), _MAX_UNIT_BYTES)


def cut_parts(files: Sequence[SourceFile], source: int, unit_bytes: int) -> Iterator[Part]:
    """The files of a source, in parts of about a unit at most where their format allows."""
    for file in files:
        if file.size > unit_bytes and file.format == "jsonl" and not file.compression:
            for start in range(0, file.size, unit_bytes):
                end = min(start + unit_bytes, file.size)
                yield Part(source, file, start, end, end - start)
        elif file.size > unit_bytes and file.format == "parquet":
            yield from _row_groups(file, source, unit_bytes)
        else:
            yield Part(source, file, size=file.size)


def group_parts(parts: Iterable[Part], unit_bytes: int) -> Iterator[tuple[Part, ...]]:
    """Consecutive parts, as many as a unit holds."""
    group: list[Part] = []
    size = 0
    for part in parts:
        if group and size + part.size > unit_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(part)
        size += part.size
    if group:
        yield tuple(group)


def _row_groups(file: SourceFile, source: int, unit_bytes: int) -> Iterator[Part]:
    """Runs of row groups, measured as they are stored: unpacked they are a few times larger."""
    with open_parquet(file) as parquet:
        sizes = [_stored_bytes(parquet.metadata.row_group(i)) for i in range(parquet.metadata.num_row_groups)]
    start, size = 0, 0
    for i, group_bytes in enumerate(sizes):
        if i > start and size + group_bytes > unit_bytes:
            yield Part(source, file, start, i, size)
            start, size = i, 0
        size += group_bytes
    yield Part(source, file, start, len(sizes), size)


def _stored_bytes(group: pq.RowGroupMetaData) -> int:
    return sum(group.column(i).total_compressed_size for i in range(group.num_columns))


def open_parquet(file: SourceFile) -> pq.ParquetFile:
    """Opens a Parquet file; a context manager.

    Raises:
        DataError: it cannot be read, or is not one.
    """
    filesystem, path = open_filesystem(file.path)
    try:
        return pq.ParquetFile(filesystem.open_input_file(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{file.path}: not a readable Parquet file ({error})") from error


def open_bytes(file: SourceFile) -> io.BufferedReader:
    """Opens a file for reading bytes, decompressed; seekable if it is not compressed.

    Raises:
        DataError: it cannot be opened.
    """
    filesystem, path = open_filesystem(file.path)
    try:
        if file.compression:
            return io.BufferedReader(filesystem.open_input_stream(path, compression=file.compression), 1 << 20)
        return io.BufferedReader(filesystem.open_input_file(path), 1 << 20)
    except OSError as error:
        raise DataError(f"{file.path}: {error}") from error
