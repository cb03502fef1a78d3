"""Reading the rows of a part of a file; rows that cannot be read come as a BadRowError, in their place."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from lowland.trainers.data.documents import BadRowError
from lowland.trainers.data.sources import SourceFile, open_filesystem
from lowland.trainers.data.units import Part, open_bytes, open_parquet
from lowland.trainers.errors import DataError

_ROWS_AT_A_TIME = 256

ReadRow = Mapping[str, Any] | BadRowError | None
"""A row, what is wrong with it, or None for a blank line, which is no row but counts as a line."""


def read_rows(part: Part, columns: Sequence[str]) -> Iterator[ReadRow]:
    """The rows of a part, with at least those of the columns that it has.

    A text file is one row with the column `columns[0]`.

    Raises:
        DataError: the file cannot be read at all.
    """
    match part.file.format:
        case "text":
            yield _read_text(part.file, columns[0])
        case "jsonl":
            yield from _read_json_lines(part)
        case "parquet":
            yield from _read_parquet(part, columns)
        case "arrow":
            yield from _read_arrow(part.file, columns)


def column_names(file: SourceFile) -> list[str]:
    """The columns of a file: of its schema, or of its first JSON object; of a text file none."""
    match file.format:
        case "text":
            return []
        case "jsonl":
            rows = (row for row in _read_json_lines(Part(0, file)) if isinstance(row, Mapping))
            return list(next(rows, {}))
        case "parquet":
            with open_parquet(file) as parquet:
                names: list[str] = parquet.schema_arrow.names
                return names
        case "arrow":
            return list(next(_record_batches(file, schema_only=True)).schema.names)


def _read_text(file: SourceFile, column: str) -> ReadRow:
    with open_bytes(file) as stream:
        data = _read(stream.read, file)
    try:
        return {column: data.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return BadRowError("undecodable", f"byte {error.start} is not UTF-8")


def _read_json_lines(part: Part) -> Iterator[ReadRow]:
    with open_bytes(part.file) as stream:
        position = part.start
        if position:
            # A line that began before the range belongs to the part before; if one begins exactly
            # here, this reads the end of line in front of it and nothing else.
            stream.seek(position - 1)
            position += len(_read(stream.readline, part.file)) - 1
        while part.end is None or position < part.end:
            line = _read(stream.readline, part.file)
            if not line:
                return
            position += len(line)
            yield _parse(line)


def _parse(line: bytes) -> ReadRow:
    if not line.strip():
        return None
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRowError("undecodable", f"byte {error.start} of the line is not UTF-8")
    except (ValueError, RecursionError) as error:
        return BadRowError("undecodable", f"not JSON: {error}")
    return row if isinstance(row, dict) else BadRowError("wrong type", f"{type(row).__name__}, not an object")


def _read_parquet(part: Part, columns: Sequence[str]) -> Iterator[ReadRow]:
    with open_parquet(part.file) as parquet:
        end = parquet.metadata.num_row_groups if part.end is None else part.end
        names = [name for name in columns if name in parquet.schema_arrow.names]
        groups = list(range(part.start, end))
        try:
            for batch in parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=groups, columns=names):
                yield from _batch_rows(batch, names)
        except (OSError, ValueError) as error:
            raise DataError(f"{part.file.path}: cannot be read ({error})") from error


def _read_arrow(file: SourceFile, columns: Sequence[str]) -> Iterator[ReadRow]:
    for batch in _record_batches(file):
        yield from _batch_rows(batch, [name for name in columns if name in batch.schema.names])


def _record_batches(file: SourceFile, *, schema_only: bool = False) -> Iterator[pa.RecordBatch]:
    """Record batches of an Arrow IPC file or stream (which some writers also call .arrow)."""
    filesystem, path = open_filesystem(file.path)
    try:
        with filesystem.open_input_file(path) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            if schema_only:
                yield pa.RecordBatch.from_pylist([], schema=reader.schema)
            elif is_file:
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                yield from reader
    except (OSError, ValueError) as error:
        raise DataError(f"{file.path}: not a readable Arrow file ({error})") from error


def _batch_rows(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[ReadRow]:
    columns = [batch.column(name) for name in names]
    for i in range(len(batch)):
        try:
            yield {name: column[i].as_py() for name, column in zip(names, columns, strict=True)}
        except UnicodeDecodeError as error:
            yield BadRowError("undecodable", f"byte {error.start} of a text value is not UTF-8")


def _read(read: Any, file: SourceFile) -> bytes:
    """Calls a stream's read method; what is wrong with a compressed file shows only then."""
    try:
        data: bytes = read()
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error})") from error
    return data
