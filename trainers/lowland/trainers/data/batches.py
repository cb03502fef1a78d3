"""Batches for training and evaluation, the same global batches at every world size."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from lowland.trainers.data.order import Indices, Order
from lowland.trainers.data.prefetch import prefetched
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.errors import DataError

IGNORED = -100
"""Label of a position at which nothing is predicted."""

Boundaries = Literal["isolate", "ignore"]


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass: CPU tensors, int64, [B, L]."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    """Already shifted: labels[b, t] is the token to predict at position t, or -100."""
    position_ids: torch.Tensor | None
    """Restarts at 0 with every document (and with the padding), from which transformers' attention masks
    follow; None where plain causal attention over the row is meant or is the same."""


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a global batch."""

    micro_batches: list[Batch]
    global_targets: int
    """Predicted tokens of the whole global batch, over all ranks: what the loss is divided by."""
    global_bytes: int
    """UTF-8 bytes of the predicted tokens of the whole global batch."""
    first_example: int
    """Place of the global batch in the stream of examples."""
    rows: Indices
    """Rows of this rank, micro-batch after micro-batch."""


def collate(split: PackedSplit, rows: Indices, boundaries: Boundaries) -> Batch:
    """Copies rows out of the mapped shards into a batch."""
    tokens = split.tokens(rows)
    labels = np.full_like(tokens, IGNORED)
    for i, row in enumerate(rows):
        for start, end in split.target_spans(row):
            labels[i, start - 1 : end - 1] = tokens[i, start:end]
    positions = _positions(split, rows) if boundaries == "isolate" else None
    return Batch(
        input_ids=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        position_ids=None if positions is None else torch.from_numpy(positions),
    )


def _positions(split: PackedSplit, rows: Indices) -> npt.NDArray[np.int64] | None:
    """Positions [B, L] within documents, or None if each row is one document.

    One document at the start of a row sees only itself under plain causal attention (its padding
    comes after it), which has faster kernels than a mask.
    """
    lengths = [split.document_lengths(row) for row in rows]
    if all(len(of_row) == 1 for of_row in lengths):
        return None
    return np.stack([_row_positions(of_row, split.sequence_length) for of_row in lengths])


def _row_positions(lengths: npt.NDArray[np.int32], sequence_length: int) -> npt.NDArray[np.int64]:
    padded = np.append(lengths, sequence_length - lengths.sum()).astype(np.int64)
    starts = np.cumsum(padded) - padded
    return np.arange(sequence_length, dtype=np.int64) - np.repeat(starts, padded)


class TrainBatches:
    """The endless stream of a rank's step batches, from any example on.

    With G = micro_batch * accumulation * world_size, the k-th step batch holds the stream's examples
    [start_example + k * G, start_example + (k + 1) * G); micro-batch m of rank r takes the slice of
    micro_batch examples at (m * world_size + r) * micro_batch of them.  So the global batch does not
    depend on how G is made up, and to go on after step k is to start at the example after its last.
    """

    def __init__(
        self,
        split: PackedSplit,
        *,
        seed: int,
        micro_batch: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        start_example: int = 0,
        boundaries: Boundaries = "isolate",
        prefetch: int = 2,
    ) -> None:
        self.global_size = micro_batch * accumulation * world_size
        self._split, self._order = split, Order(len(split), seed)
        self._shape = (accumulation, world_size, micro_batch)
        self._rank, self._start = rank, start_example
        self._boundaries: Boundaries = boundaries
        self._prefetch = prefetch

    def __iter__(self) -> Generator[StepBatch]:
        """A new stream from `start_example`; close() it to end its thread at once."""
        return prefetched(self._steps(), self._prefetch)

    def _steps(self) -> Generator[StepBatch]:
        first = self._start
        while True:
            yield self._step(first)
            first += self.global_size

    def _step(self, first: int) -> StepBatch:
        examples = self._order.examples(first, self.global_size)
        mine = examples.reshape(self._shape)[:, self._rank]
        return StepBatch(
            micro_batches=[collate(self._split, rows, self._boundaries) for rows in mine],
            global_targets=int(self._split.num_targets(examples).sum()),
            global_bytes=int(self._split.num_bytes(examples).sum()),
            first_example=first,
            rows=mine.reshape(-1),
        )


class HeldOutBatches:
    """A rank's part of the fixed held-out rows: from `skip_sequences` on the first `max_sequences`, or all.

    Every rank yields the same number of batches, as forward passes under ZeRO-3 are collective; a rank
    without rows for its turn yields a batch in which nothing is predicted.

    Raises:
        DataError: no row is left.
    """

    def __init__(
        self,
        split: PackedSplit,
        *,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        skip_sequences: int = 0,
        max_sequences: int | None = None,
        boundaries: Boundaries = "isolate",
    ) -> None:
        if skip_sequences >= len(split):
            raise DataError(
                f"evaluation.skip_sequences ({skip_sequences}) leaves none of the {len(split)} held-out sequences of "
                f"{split.folder}; lower it, or prepare with more held out"
            )
        self._split, self._micro_batch = split, micro_batch
        self._rank, self._world_size = rank, world_size
        end = min(len(split), skip_sequences + (max_sequences or len(split)))
        self._rows = np.arange(skip_sequences, end, dtype=np.int64)
        self._boundaries: Boundaries = boundaries
        self.global_targets = int(split.num_targets(self._rows).sum())
        """Predicted tokens over all ranks."""
        self.global_bytes = int(split.num_bytes(self._rows).sum())
        """UTF-8 bytes of them."""

    def __len__(self) -> int:
        return -(-len(self._rows) // (self._micro_batch * self._world_size))

    def __iter__(self) -> Iterator[Batch]:
        for turn in range(len(self)):
            first = (turn * self._world_size + self._rank) * self._micro_batch
            rows = self._rows[first : first + self._micro_batch]
            yield collate(self._split, rows, self._boundaries) if len(rows) else self._nothing()

    def _nothing(self) -> Batch:
        batch = collate(self._split, self._rows[:1], self._boundaries)
        return Batch(batch.input_ids, torch.full_like(batch.labels, IGNORED), batch.position_ids)
