"""Reading a prepared split: memory-mapped, a row at a time or many, never the whole."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowland.trainers.data.manifest import Manifest, SplitInfo, SplitName
from lowland.trainers.data.shards import Block, MappedShard
from lowland.trainers.data.store import local_folder
from lowland.trainers.errors import DataError

_OPEN_SHARDS = 256
"""Shards mapped at a time: each holds a file descriptor."""
_READS_PER_RELEASE = 256
"""Rows looked up until the pages of all shards are released."""

Rows = Sequence[int] | npt.NDArray[np.int64]


class PackedSplit:
    """The rows of one split, in the order of its shards."""

    def __init__(self, folder: Path, manifest: Manifest, info: SplitInfo) -> None:
        self.folder, self.manifest, self.info = folder, manifest, info
        self._ends = np.cumsum([shard.rows for shard in info.shards], dtype=np.int64)
        self._open: dict[int, MappedShard] = {}
        self._reads = 0

    @classmethod
    def open(cls, folder: str | Path, name: SplitName) -> "PackedSplit":
        """Opens a split of a prepared folder; shards are mapped when they are first read.

        Args:
            folder: a local folder, or a URI, which is first copied to this machine.
            name: the split.

        Raises:
            DataError: no manifest, no rows in the split, or a shard that is missing.
        """
        folder = local_folder(folder)
        manifest = Manifest.read(folder)
        info = manifest.split(name, str(folder))
        for shard in info.shards:
            if not (folder / shard.file).is_file():
                raise DataError(f"{folder / shard.file}: this shard is named in the manifest but missing")
        return cls(folder, manifest, info)

    def __len__(self) -> int:
        return self.info.rows

    @property
    def sequence_length(self) -> int:
        """Tokens per row, L."""
        return self.manifest.sequence_length

    def tokens(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Token ids [len(rows), L]; padding is the tokenizer's pad id."""
        result = np.empty((len(rows), self.sequence_length), dtype=np.int64)
        for where, block, local in self._by_block(rows):
            result[where] = block.tokens[local]
        return result

    def num_targets(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Predicted tokens of each row, [len(rows)]."""
        result = np.empty(len(rows), dtype=np.int64)
        for where, block, local in self._by_block(rows):
            result[where] = block.num_targets[local]
        return result

    def num_bytes(self, rows: Rows) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of the predicted tokens of each row, [len(rows)]."""
        result = np.empty(len(rows), dtype=np.int64)
        for where, block, local in self._by_block(rows):
            result[where] = block.num_bytes[local]
        return result

    def document_lengths(self, row: int) -> npt.NDArray[np.int32]:
        """Lengths of the document pieces of a row, in order; what is left of L is padding. A view."""
        block, i = self._locate(row)
        return block.document_lengths[block.document_offsets[i] : block.document_offsets[i + 1]]

    def target_spans(self, row: int) -> npt.NDArray[np.int32]:
        """[n, 2] pairs (start, end) of positions of a row whose token is predicted. A view."""
        block, i = self._locate(row)
        return block.target_spans[block.span_offsets[i] : block.span_offsets[i + 1]].reshape(-1, 2)

    def blocks(self) -> Iterator[Block]:
        """All record batches, in order, for a pass over the whole split."""
        for info in self.info.shards:
            shard = MappedShard(self.folder, info)
            for i in range(shard.num_blocks):
                yield shard.block(i)
                shard.release()

    def _shard(self, index: int) -> MappedShard:
        if index not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.clear()
            self._open[index] = MappedShard(self.folder, self.info.shards[index])
        return self._open[index]

    def _locate(self, row: int) -> tuple[Block, int]:
        _, block, local = next(self._by_block([row]))
        return block, int(local[0])

    def _by_block(self, rows: Rows) -> Iterator[tuple[npt.NDArray[np.intp], Block, npt.NDArray[np.int64]]]:
        """For each record batch that holds some of the rows: their places in `rows`, the batch, rows within it."""
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"row out of range [0, {len(self)})")
        self._reads += len(wanted)
        if self._reads > _READS_PER_RELEASE:
            self._reads = 0
            for opened in self._open.values():
                opened.release()
        shard_of = np.searchsorted(self._ends, wanted, side="right")
        for shard in np.unique(shard_of).tolist():
            in_shard = np.flatnonzero(shard_of == shard)
            first = self._ends[shard - 1] if shard else 0
            block_of, local = np.divmod(wanted[in_shard] - first, self.info.shards[shard].batch_rows)
            for block in np.unique(block_of).tolist():
                here = block_of == block
                yield in_shard[here], self._shard(shard).block(block), local[here]
