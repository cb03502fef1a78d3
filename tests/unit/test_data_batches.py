"""Batches: the same global batches at every world size, exact resume, labels and positions."""

import threading
from collections.abc import Generator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from support.texts import prepare_here, write_lines

from lowland.trainers.data.batches import IGNORED, HeldOutBatches, StepBatch, TrainBatches, collate
from lowland.trainers.data.prefetch import prefetched
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.errors import DataError

LENGTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short documents, several to a row."""
    place = tmp_path_factory.mktemp("batches")
    texts = [{"text": "abcdefghij"[: 1 + i % 9] * (1 + i % 3)} for i in range(150)]
    return prepare_here(
        place / "out", write_lines(place / "in.jsonl", texts), sequence_length=LENGTH, held_out=0.2
    ).folder


@pytest.fixture
def train(folder: Path) -> PackedSplit:
    return PackedSplit.open(folder, "train")


def steps(split: PackedSplit, count: int, **how: int) -> list[StepBatch]:
    batches = iter(TrainBatches(split, seed=5, **{"micro_batch": 2, **how}))  # type: ignore[arg-type]
    try:
        return list(islice(batches, count))
    finally:
        batches.close()


def global_batch(split: PackedSplit, step: int, world_size: int, micro_batch: int, accumulation: int) -> list[int]:
    """Rows of a step in the order of the stream, put together from all ranks."""
    shape = (accumulation, micro_batch)
    cut = {"world_size": world_size, "micro_batch": micro_batch, "accumulation": accumulation}
    ranks = [steps(split, step + 1, rank=rank, **cut)[step].rows.reshape(shape) for rank in range(world_size)]
    return np.stack(ranks, axis=1).reshape(-1).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("step", [0, 7])
def test_world_sizes_see_the_same_global_batch(train: PackedSplit, step: int):
    cuts = [(1, 2, 4), (1, 8, 1), (2, 2, 2), (2, 4, 1), (4, 2, 1), (4, 1, 2)]
    batches = [global_batch(train, step, *cut) for cut in cuts]
    assert all(batch == batches[0] for batch in batches)


def test_global_counts_are_known_to_every_rank(train: PackedSplit):
    ranks = [steps(train, 3, rank=rank, world_size=4) for rank in range(4)]
    for parts in zip(*ranks, strict=True):
        labels = torch.cat([batch.labels for part in parts for batch in part.micro_batches])
        assert {part.global_targets for part in parts} == {int((labels != IGNORED).sum())}
        assert {part.global_bytes for part in parts} == {int(((labels != IGNORED) & (labels < 256)).sum())}


@pytest.mark.parametrize("done", [1, 4, 60])
def test_resume_goes_on_at_the_exact_next_example(train: PackedSplit, done: int):
    whole = steps(train, done + 3, accumulation=3, rank=1, world_size=2)
    resumed = steps(train, 3, accumulation=3, rank=1, world_size=2, start_example=done * 12)
    for expected, found in zip(whole[done:], resumed, strict=True):
        assert expected.first_example == found.first_example
        assert np.array_equal(expected.rows, found.rows)
        assert all(
            torch.equal(a.input_ids, b.input_ids)
            for a, b in zip(expected.micro_batches, found.micro_batches, strict=True)
        )


def test_labels_are_the_next_token_within_each_document(train: PackedSplit):
    for row in range(len(train)):
        batch = collate(train, np.array([row]), "isolate")
        tokens, labels = batch.input_ids[0].tolist(), batch.labels[0].tolist()
        start = 0
        for length in train.document_lengths(row).tolist():
            assert labels[start : start + length - 1] == tokens[start + 1 : start + length]
            assert labels[start + length - 1] == IGNORED
            start += length
        assert set(labels[start:]) <= {IGNORED}
        assert set(tokens[start:]) <= {train.manifest.tokenizer.pad_id}


def test_positions_restart_with_documents_and_padding(train: PackedSplit):
    row = next(row for row in range(len(train)) if len(train.document_lengths(row)) > 1)
    batch = collate(train, np.array([row]), "isolate")
    lengths = train.document_lengths(row).tolist()
    expected = [i for length in [*lengths, LENGTH - sum(lengths)] for i in range(length)]
    assert batch.position_ids is not None
    assert batch.position_ids[0].tolist() == expected
    assert collate(train, np.array([row]), "ignore").position_ids is None


def test_rows_of_one_document_need_no_positions(tmp_path: Path):
    long = write_lines(tmp_path / "in.jsonl", [{"text": "x" * 200}])
    split = PackedSplit.open(prepare_here(tmp_path / "out", long, sequence_length=LENGTH, held_out=0.0).folder, "train")
    assert collate(split, np.arange(len(split)), "isolate").position_ids is None


def test_a_document_is_seen_alone(tmp_path: Path):
    """transformers derives from the positions a mask that ends at documents and at padding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    three = write_lines(tmp_path / "in.jsonl", [{"text": text} for text in ("abc", "de", "f")])
    split = PackedSplit.open(
        prepare_here(tmp_path / "out", three, sequence_length=LENGTH, packing="fit", held_out=0.0).folder, "train"
    )
    assert split.document_lengths(0).tolist() == [5, 4, 3]  # and four places of padding
    batch = collate(split, np.array([0]), "isolate")
    with torch.no_grad():
        packed = model(batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0]
        start = 0
        for length in split.document_lengths(0).tolist():
            alone = model(batch.input_ids[:, start : start + length], use_cache=False).logits[0]
            torch.testing.assert_close(packed[start : start + length], alone)
            start += length


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize("max_sequences", [None, 1, 5])
def test_held_out_rows_are_the_same_at_every_world_size(folder: Path, micro_batch: int, max_sequences: int | None):
    split = PackedSplit.open(folder, "held_out")
    how = {"micro_batch": micro_batch, "max_sequences": max_sequences}
    expected = sorted(labels_of(HeldOutBatches(split, **how)))  # type: ignore[arg-type]
    for world_size in (2, 4):
        ranks = [HeldOutBatches(split, rank=rank, world_size=world_size, **how) for rank in range(world_size)]  # type: ignore[arg-type]
        assert len({len(list(batches)) for batches in ranks}) == 1  # forward passes are collective
        assert sorted(labels for batches in ranks for labels in labels_of(batches)) == expected
        assert {batches.global_targets for batches in ranks} == {count(expected)}


@pytest.mark.parametrize("skip", [1, 3])
def test_held_out_rows_that_are_left_out_are_the_first(folder: Path, skip: int):
    split = PackedSplit.open(folder, "held_out")
    every = labels_of(HeldOutBatches(split, micro_batch=2))
    assert labels_of(HeldOutBatches(split, micro_batch=2, skip_sequences=skip)) == every[skip:]
    first, second = ({"skip_sequences": s, "max_sequences": m} for s, m in ((0, skip), (skip, 2)))
    chosen, reported = (labels_of(HeldOutBatches(split, micro_batch=2, **how)) for how in (first, second))
    assert [*chosen, *reported] == every[: skip + 2]
    with pytest.raises(DataError, match="leaves none of the"):
        HeldOutBatches(split, micro_batch=2, skip_sequences=len(split))


def labels_of(batches: HeldOutBatches) -> list[tuple[int, ...]]:
    """Labels of the rows in which anything is predicted."""
    rows = [tuple(row.tolist()) for batch in batches for row in batch.labels]
    return [row for row in rows if set(row) != {IGNORED}]


def count(rows: list[tuple[int, ...]]) -> int:
    return sum(label != IGNORED for row in rows for label in row)


def prefetch_threads() -> int:
    return sum(thread.name == "lowland-prefetch" for thread in threading.enumerate())


def test_prefetching_changes_nothing_and_ends(train: PackedSplit):
    ahead, direct = (steps(train, 5, prefetch=depth) for depth in (3, 0))
    assert [batch.rows.tolist() for batch in ahead] == [batch.rows.tolist() for batch in direct]
    assert prefetch_threads() == 0


def test_prefetch_makes_at_most_depth_items_ahead():
    made = 0
    third = threading.Event()

    def source() -> Generator[int]:
        nonlocal made
        while True:
            made += 1
            if made == 3:
                third.set()
            yield made

    items = prefetched(source(), 2)
    assert next(items) == 1
    assert third.wait(10)
    items.close()
    assert made == 3
    assert prefetch_threads() == 0


def test_an_error_of_the_source_comes_after_what_was_made():
    closed = []

    def source() -> Generator[int]:
        try:
            yield 1
            raise DataError("shard is gone")
        finally:
            closed.append(True)

    items = prefetched(source(), 4)
    assert next(items) == 1
    with pytest.raises(DataError, match="shard is gone"):
        next(items)
    assert closed
    assert prefetch_threads() == 0


def test_a_source_that_ends_ends_the_stream():
    assert list(prefetched((i for i in range(7)), 3)) == list(range(7))


def test_an_error_of_the_consumer_ends_the_thread(train: PackedSplit):
    def consume() -> None:
        for _ in TrainBatches(train, seed=0, micro_batch=1):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        consume()
    assert prefetch_threads() == 0
