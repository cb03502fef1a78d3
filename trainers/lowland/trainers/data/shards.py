"""The layout of a shard: an uncompressed Arrow IPC file, one row per packed sequence of L tokens."""

import hashlib
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lowland.trainers.data.manifest import ShardInfo
from lowland.trainers.errors import DataError

BATCH_BYTES = 8 << 20
"""Token bytes per record batch: what a writer holds in memory, and the unit in which readers map columns."""
SHARD_BYTES = 256 << 20
"""Token bytes after which a writer goes on in a new file."""


@dataclass
class Row:
    """A packed sequence before padding."""

    tokens: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    """Pieces of documents, in order; their lengths add up to at most L."""
    target_spans: list[int] = field(default_factory=list)
    """Flat pairs (start, end): positions in the row whose token is predicted."""
    num_bytes: int = 0
    """UTF-8 bytes of the text of the predicted tokens."""

    def __len__(self) -> int:
        return sum(map(len, self.tokens))

    @property
    def num_targets(self) -> int:
        """Tokens of this row that are predicted."""
        return sum(self.target_spans[1::2]) - sum(self.target_spans[::2])


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The narrower of the two stored types that holds every id below vocab_size."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def schema(sequence_length: int, dtype: npt.DTypeLike) -> pa.Schema:
    """Columns of a shard."""
    return pa.schema(
        [
            pa.field("tokens", pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), sequence_length), nullable=False),
            pa.field("document_lengths", pa.list_(pa.int32()), nullable=False),
            pa.field("target_spans", pa.list_(pa.int32()), nullable=False),
            pa.field("num_targets", pa.int32(), nullable=False),
            pa.field("num_bytes", pa.int32(), nullable=False),
        ]
    )


class ShardWriter:
    """Writes rows into `<prefix>-00000.arrow`, `<prefix>-00001.arrow`, … of a folder; no file if there are no rows."""

    def __init__(self, folder: Path, prefix: str, *, sequence_length: int, dtype: npt.DTypeLike, pad_id: int) -> None:
        self.shards: list[ShardInfo] = []
        self._folder, self._prefix = folder, prefix
        self._length, self._dtype, self._pad_id = sequence_length, np.dtype(dtype), pad_id
        self._schema = schema(sequence_length, dtype)
        row_bytes = sequence_length * self._dtype.itemsize
        self._batch_rows = max(1, BATCH_BYTES // row_bytes)
        self._shard_rows = max(1, SHARD_BYTES // row_bytes)
        self._pending: list[Row] = []
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._rows_in_shard = 0

    def write(self, row: Row) -> None:
        """Appends a row; it reaches the disk when its record batch is full."""
        self._pending.append(row)
        if len(self._pending) == self._batch_rows:
            self._flush()
            if self._rows_in_shard >= self._shard_rows:
                self._end_shard()

    def close(self) -> None:
        """Writes what is pending; `shards` is complete afterwards."""
        if self._pending:
            self._flush()
        self._end_shard()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._writer is not None:
            self._writer.close()

    def _path(self) -> Path:
        return self._folder / f"{self._prefix}-{len(self.shards):05d}.arrow"

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_file(str(self._path()), self._schema)
        self._writer.write_batch(self._record_batch(self._pending))
        self._rows_in_shard += len(self._pending)
        self._pending = []

    def _record_batch(self, rows: list[Row]) -> pa.RecordBatch:
        tokens = np.full((len(rows), self._length), self._pad_id, dtype=self._dtype)
        for i, row in enumerate(rows):
            joined = np.concatenate(row.tokens)
            tokens[i, : len(joined)] = joined
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), self._length),
            pa.array([[len(piece) for piece in row.tokens] for row in rows], pa.list_(pa.int32())),
            pa.array([row.target_spans for row in rows], pa.list_(pa.int32())),
            pa.array([row.num_targets for row in rows], pa.int32()),
            pa.array([row.num_bytes for row in rows], pa.int32()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        path = self._path()
        info = ShardInfo(
            file=path.name, rows=self._rows_in_shard, batch_rows=self._batch_rows, sha256=file_sha256(path)
        )
        self.shards.append(info)
        self._writer, self._rows_in_shard = None, 0


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Block:
    """Views into one mapped record batch of n rows; nothing is copied."""

    tokens: npt.NDArray[np.unsignedinteger]
    """[n, L]"""
    num_targets: npt.NDArray[np.int32]
    """[n]"""
    num_bytes: npt.NDArray[np.int32]
    """[n]"""
    document_offsets: npt.NDArray[np.int32]
    """[n + 1]; row i has the lengths document_lengths[offsets[i]:offsets[i + 1]]."""
    document_lengths: npt.NDArray[np.int32]
    span_offsets: npt.NDArray[np.int32]
    """[n + 1], into target_spans."""
    target_spans: npt.NDArray[np.int32]


class MappedShard:
    """A shard mapped into memory; it stays mapped as long as this or a view of it lives."""

    def __init__(self, folder: Path, info: ShardInfo) -> None:
        path = folder / info.file
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a readable shard ({error}); prepare the data again") from error
        self._blocks: dict[int, Block] = {}
        self.num_blocks = -(-info.rows // info.batch_rows)
        if self._reader.num_record_batches != self.num_blocks:
            raise DataError(f"{path}: not the shard that the manifest describes; prepare the data again")

    def block(self, index: int) -> Block:
        """The views of a record batch."""
        if index not in self._blocks:
            self._blocks[index] = _block(self._reader.get_batch(index))
        return self._blocks[index]

    def release(self) -> None:
        """Gives back the pages that were read; views stay valid, and a page that is read again is mapped again.

        Pages of a mapping count as resident from their first use on, each with its neighbours (up to
        megabytes), so that a process would seem to hold the data set.  pyarrow.memory_map cannot do this.
        """
        self._map.madvise(mmap.MADV_DONTNEED)


def _block(batch: pa.RecordBatch) -> Block:
    tokens, documents, spans = (
        batch.column("tokens"),
        batch.column("document_lengths"),
        batch.column("target_spans"),
    )
    return Block(
        tokens=_view(tokens.values).reshape(len(batch), tokens.type.list_size),
        num_targets=_view(batch.column("num_targets")),
        num_bytes=_view(batch.column("num_bytes")),
        document_offsets=_view(documents.offsets),
        document_lengths=_view(documents.values),
        span_offsets=_view(spans.offsets),
        target_spans=_view(spans.values),
    )


def _view(array: pa.Array) -> npt.NDArray[Any]:
    view: npt.NDArray[Any] = array.to_numpy(zero_copy_only=True)
    return view
