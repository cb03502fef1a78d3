"""Encoded images by row, wherever they lie: in memory, in files, or decoded already."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import fs

_READ_AHEAD = 16 << 10
"""Bytes that are read of an image file at a time, where only its header is wanted: Pillow asks for a few each time."""


class Encoded:
    """Encoded images by row: those of Parquet files, whose bytes are held as Arrow has them."""

    def __init__(self, columns: Sequence[pa.ChunkedArray], files: Sequence[str]) -> None:
        self._columns, self._files = columns, files
        self._ends = np.cumsum([len(column) for column in columns], dtype=np.int64)

    def read(self, row: int) -> "bytes | npt.NDArray[np.uint8] | None":
        """The encoded image, or its pixels, [H, W] or [H, W, 3]; None if the row has none."""
        file, local = self._locate(row)
        value = self._columns[file][local]
        data: bytes | None = value.as_py()
        return data

    @contextmanager
    def opened(self, row: int) -> "Iterator[bytes | npt.NDArray[np.uint8] | BinaryIO | None]":
        """What `read` gives, or a seekable stream of it where it is not in memory."""
        yield self.read(row)

    def place(self, row: int) -> str:
        """File and row, for messages; rows count from 0 within their file."""
        file, local = self._locate(row)
        return f"{self._files[file]} row {local}"

    def _locate(self, row: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._ends, row, side="right"))
        return file, row - (int(self._ends[file - 1]) if file else 0)


class Files(Encoded):
    """Image files, read when they are asked for."""

    def __init__(self, filesystem: fs.FileSystem, paths: Sequence[str]) -> None:
        self._filesystem, self._paths = filesystem, paths

    def path(self, row: int) -> str:
        """The file of a row."""
        return self._paths[row]

    def read(self, row: int) -> bytes | None:
        """The file's bytes; None if it is gone."""
        try:
            with self._filesystem.open_input_stream(self._paths[row], compression=None) as stream:
                return bytes(stream.read())
        except OSError:
            return None

    @contextmanager
    def opened(self, row: int) -> Iterator[BinaryIO | None]:
        """The file; None if it is gone."""
        try:
            file = self._filesystem.open_input_file(self._paths[row])
        except OSError:
            yield None
            return
        with io.BufferedReader(file, _READ_AHEAD) as stream:
            yield stream

    def place(self, row: int) -> str:
        """File and row."""
        return f"{self._paths[row]} (row {row})"


class Decoded(Encoded):
    """Pixels that are decoded already: [N, H, W], or [N, H, W, 3]."""

    def __init__(self, pixels: npt.NDArray[np.uint8], name: str) -> None:
        self._pixels, self._name = pixels, name

    def read(self, row: int) -> npt.NDArray[np.uint8]:
        """Pixels [H, W], or [H, W, 3]."""
        pixels: npt.NDArray[np.uint8] = self._pixels[row]
        return pixels

    def place(self, row: int) -> str:
        """The row."""
        return f"{self._name} row {row}"
