"""Packing documents into rows of a fixed length."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np

from lowland.trainers.data.documents import BadRowError, Document
from lowland.trainers.data.shards import Row

Packing = Literal["split", "fit"]

_MAX_OPEN_ROWS = 4096
"""Rows that wait for a document that fits; a bound on memory, far above what a work unit usually opens."""


class Packer(Protocol):
    """Takes documents one by one and gives back rows as they are full."""

    def add(self, document: Document) -> Iterator[Row]:
        """Rows that this document filled.

        Raises:
            BadRowError: the document cannot be packed; nothing was changed.
        """

    def finish(self) -> Iterator[Row]:
        """The rows that are still open."""


def packer_for(packing: Packing, sequence_length: int) -> Packer:
    """A new packer."""
    return SplitPacker(sequence_length) if packing == "split" else FitPacker(sequence_length)


class SplitPacker:
    """Puts documents one after another and cuts them where a row ends; only the last row has padding.

    What goes on in the next row begins there with the last token of the row before, as context: so
    every token but the first of a document is predicted exactly once.
    """

    def __init__(self, sequence_length: int) -> None:
        self._length = sequence_length
        self._row = Row()

    def add(self, document: Document) -> Iterator[Row]:
        """Rows that this document filled; a document of any length is taken."""
        start = 0
        while True:
            end = min(len(document), start + self._length - len(self._row))
            append(self._row, document, start, end)
            if len(self._row) == self._length:
                yield self._row
                self._row = Row()
            if end == len(document):
                return
            start = end - 1

    def finish(self) -> Iterator[Row]:
        """The last row, if it holds anything."""
        if len(self._row):
            yield self._row
            self._row = Row()


class FitPacker:
    """Keeps every document whole, in the open row where it leaves the least space (best fit)."""

    def __init__(self, sequence_length: int) -> None:
        self._length = sequence_length
        self._open: list[tuple[int, int, Row]] = []  # (space, age, row), sorted; ages differ, so rows never compare
        self._made = 0

    def add(self, document: Document) -> Iterator[Row]:
        """Rows that nothing fits into any more; a document longer than a row is a BadRowError."""
        if len(document) > self._length:
            raise BadRowError("too long", f"{len(document)} tokens; a row holds {self._length}")
        where = bisect_left(self._open, (len(document), -1))
        space, age, row = self._open.pop(where) if where < len(self._open) else self._new()
        append(row, document, 0, len(document))
        if space - len(document) < 2:  # the shortest document that predicts anything
            yield row
            return
        insort(self._open, (space - len(document), age, row))
        if len(self._open) > _MAX_OPEN_ROWS:
            yield self._open.pop(0)[2]

    def finish(self) -> Iterator[Row]:
        """The open rows, oldest first."""
        for _, _, row in sorted(self._open, key=lambda entry: entry[1]):
            yield row
        self._open = []

    def _new(self) -> tuple[int, int, Row]:
        self._made += 1
        return self._length, self._made, Row()


def append(row: Row, document: Document, start: int, end: int) -> None:
    """Appends the tokens [start, end) of a document as a piece; the piece's first token is context."""
    offset = len(row) - start
    targets = np.zeros(end - start + 2, dtype=bool)  # with a False at both sides, so that every span has two edges
    targets[2:-1] = document.targets[start + 1 : end]
    edges = np.flatnonzero(targets[1:] != targets[:-1])
    row.target_spans.extend((edges + start + offset).tolist())
    row.num_bytes += int(document.num_bytes[start:end][targets[1:-1]].sum())
    row.tokens.append(document.tokens[start:end])
