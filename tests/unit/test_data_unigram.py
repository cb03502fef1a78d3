"""The unigram baseline, against a count by hand."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.texts import prepare_here, write_lines

from lowland.trainers.data.split import PackedSplit
from lowland.trainers.data.unigram import target_counts, unigram_baseline


def test_it_is_the_cross_entropy_of_smoothed_frequencies(tmp_path: Path):
    train = write_lines(tmp_path / "a.jsonl", [{"text": "aab"}, {"text": "b ü"}])
    held_out = write_lines(tmp_path / "b.jsonl", [{"text": "ab"}, {"text": "üz"}])
    folder = prepare_here(tmp_path / "out", train, held_out_sources=(str(held_out),), sequence_length=7).folder
    splits = PackedSplit.open(folder, "train"), PackedSplit.open(folder, "held_out")

    end = 256
    seen = Counter([*b"aab", end, *"b ü".encode(), end])
    evaluated = [*b"ab", end, *"üz".encode(), end]
    total = sum(seen.values()) + 258
    nats = -sum(math.log((seen[token] + 1) / total) for token in evaluated)

    baseline = unigram_baseline(*splits)
    assert baseline.loss == pytest.approx(nats / len(evaluated))
    assert baseline.bits_per_byte == pytest.approx(nats / math.log(2) / 5)


def test_counts_leave_out_context_and_padding(tmp_path: Path):
    source = write_lines(tmp_path / "a.jsonl", [{"prompt": "ppp", "completion": "cc"}] * 3000)
    split = PackedSplit.open(prepare_here(tmp_path / "out", source, sequence_length=16, held_out=0.0).folder, "train")
    counts = target_counts(split)
    assert {int(token): int(counts[token]) for token in np.flatnonzero(counts)} == {ord("c"): 6000, 256: 3000}
    assert target_counts(split, at_least=10).sum() < counts.sum()
