"""A split is read through its mapping: any rows, in any order, without holding them."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lowland.trainers.data import shards, split
from lowland.trainers.data.manifest import Manifest, ShardInfo, SplitInfo, TokenizerInfo
from lowland.trainers.data.shards import MappedShard, Row, ShardWriter
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.errors import DataError

LENGTH = 32


def tokens_of(row: int) -> np.ndarray:
    return (np.arange(LENGTH - row % 5, dtype=np.uint32) * 7 + row) % 250


def write(folder: Path, rows: int) -> list[ShardInfo]:
    with ShardWriter(folder, "train", sequence_length=LENGTH, dtype="uint16", pad_id=257) as writer:
        for i in range(rows):
            tokens = tokens_of(i)
            cut = 3 + i % 4
            writer.write(Row([tokens[:cut], tokens[cut:]], [1, cut, cut + 1, len(tokens)], i))
    return writer.shards


def opened(folder: Path, written: list[ShardInfo]) -> PackedSplit:
    tokenizer = TokenizerInfo(kind="byte", digest="", vocab_size=258, bos_id=256, eos_id=256, pad_id=257)
    rows = sum(shard.rows for shard in written)
    Manifest(
        tokenizer=tokenizer,
        sequence_length=LENGTH,
        dtype="uint16",
        packing="fit",
        seed=0,
        held_out=0.0,
        splits={"train": SplitInfo(rows=rows, targets=rows, bytes=rows, shards=tuple(written))},
        sources=(),
        bad_rows={},
        document_lengths={},
    ).with_digest().write(folder)
    return PackedSplit.open(folder, "train")


@pytest.fixture
def many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackedSplit:
    """1000 rows in record batches of 8 and shards of 24."""
    monkeypatch.setattr(shards, "BATCH_BYTES", 8 * LENGTH * 2)
    monkeypatch.setattr(shards, "SHARD_BYTES", 24 * LENGTH * 2)
    written = write(tmp_path, 1000)
    assert [shard.rows for shard in written] == [24] * 41 + [16]
    return opened(tmp_path, written)


def test_rows_come_back_from_any_shard_in_any_order(many_shards: PackedSplit, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(split, "_OPEN_SHARDS", 3)
    rows = np.random.default_rng(0).integers(0, 1000, 300)
    found = many_shards.tokens(rows)
    for row, tokens in zip(rows.tolist(), found, strict=True):
        expected = tokens_of(row)
        assert np.array_equal(tokens[: len(expected)], expected)
        assert set(tokens[len(expected) :].tolist()) <= {257}
        assert many_shards.document_lengths(row).tolist() == [3 + row % 4, len(expected) - 3 - row % 4]
        assert many_shards.target_spans(row).tolist() == [[1, 3 + row % 4], [4 + row % 4, len(expected)]]
    assert many_shards.num_bytes(rows).tolist() == rows.tolist()
    assert many_shards.num_targets(rows).tolist() == [len(tokens_of(row)) - 2 for row in rows.tolist()]


def test_blocks_are_all_rows_in_order(many_shards: PackedSplit):
    num_bytes = np.concatenate([block.num_bytes.copy() for block in many_shards.blocks()])
    assert np.array_equal(num_bytes, np.arange(1000))


@pytest.mark.parametrize("row", [-1, 1000])
def test_a_row_that_is_not_there(many_shards: PackedSplit, row: int):
    with pytest.raises(IndexError):
        many_shards.tokens([row])


def test_columns_are_views_into_the_mapping(tmp_path: Path):
    (info,) = write(tmp_path, 100)
    before = pa.total_allocated_bytes()
    shard = MappedShard(tmp_path, info)
    block = shard.block(0)
    assert pa.total_allocated_bytes() == before
    for name in ("tokens", "num_targets", "num_bytes", "document_lengths", "target_spans"):
        view = getattr(block, name)
        assert not view.flags.owndata
        assert not view.flags.writeable
    expected = block.tokens.copy()
    shard.release()
    assert np.array_equal(block.tokens, expected)


def test_reading_everything_holds_a_batch_at_a_time(tmp_path: Path):
    split = opened(tmp_path, write(tmp_path, 60_000))
    size = (tmp_path / "train-00000.arrow").stat().st_size
    split.tokens([0])
    tracemalloc.start()
    for first in range(0, 60_000, 100):
        split.tokens(range(first, first + 100))
        split.num_targets(range(first, first + 100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 20


def test_wide_vocabularies_are_stored_in_32_bits():
    assert [shards.token_dtype(size) for size in (258, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


def test_a_shard_that_is_not_the_manifests(tmp_path: Path):
    written = write(tmp_path, 100)
    found = opened(tmp_path, [written[0].model_copy(update={"batch_rows": 10})])
    with pytest.raises(DataError, match="not the shard that the manifest describes"):
        found.tokens([0])
