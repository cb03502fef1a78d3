"""A small prepared text, made without reading anything."""

from pathlib import Path

import numpy as np

from lowland.trainers.data.manifest import Manifest, SplitInfo, TokenizerInfo
from lowland.trainers.data.shards import Row, ShardWriter


def prepared(
    folder: Path,
    *,
    rows: int = 64,
    held_out: int = 8,
    length: int = 32,
    seed: int = 0,
    targets: tuple[int, int] | None = None,
) -> Path:
    """Rows of two documents each, whose tokens follow a noisy cycle that a model can learn.

    With `targets` only so many tokens (at least, at most) at the end of each row are predicted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    splits = {
        name: _split(folder, name, count, length, generator, targets)
        for name, count in (("train", rows), ("held_out", held_out))
    }
    Manifest(
        tokenizer=TokenizerInfo(kind="byte", digest="0" * 64, vocab_size=258, bos_id=256, eos_id=256, pad_id=257),
        sequence_length=length,
        dtype="uint16",
        packing="split",
        seed=seed,
        held_out=0.1,
        splits=splits,
        sources=(),
        bad_rows={},
        document_lengths={},
    ).with_digest().write(folder)
    return folder


def _split(
    folder: Path,
    name: str,
    rows: int,
    length: int,
    generator: np.random.Generator,
    targets: tuple[int, int] | None,
) -> SplitInfo:
    with ShardWriter(folder, name, sequence_length=length, dtype=np.uint16, pad_id=257) as writer:
        made = [_row(length, generator, targets) for _ in range(rows)]
        for row in made:
            writer.write(row)
    return SplitInfo(
        rows=rows,
        tokens=rows * length,
        targets=sum(row.num_targets for row in made),
        bytes=sum(row.num_bytes for row in made),
        documents=2 * rows,
        shards=tuple(writer.shards),
    )


def _row(length: int, generator: np.random.Generator, targets: tuple[int, int] | None) -> Row:
    cut = int(generator.integers(4, length - 4)) if targets is None else 1
    documents = [_document(cut, generator), _document(length - cut, generator)]
    spans = [1, cut, cut + 1, length]
    if targets is not None:
        spans = [length - int(generator.integers(targets[0], targets[1] + 1)), length]
    row = Row(documents, spans)
    row.num_bytes = row.num_targets
    return row


def _document(length: int, generator: np.random.Generator) -> np.ndarray:
    tokens = (generator.integers(0, 64) + 3 * np.arange(length)) % 64
    noisy = generator.random(length) < 0.1
    return np.where(noisy, generator.integers(0, 64, length), tokens).astype(np.uint16)
