"""The loss of a model that knows only how frequent each token is: what any training must fall below."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowland.trainers.data.shards import Block
from lowland.trainers.data.split import PackedSplit

_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class UnigramBaseline:
    """A unigram model, fitted with add-one smoothing on training targets, on held-out targets."""

    loss: float
    """Nats per predicted token."""
    bits_per_byte: float
    """Bits per UTF-8 byte of the predicted tokens' text."""


def unigram_baseline(
    train: PackedSplit, held_out: PackedSplit, *, max_train_targets: int | None = None
) -> UnigramBaseline:
    """Fits on the training split (at least its first `max_train_targets` targets) and evaluates on the held-out one."""
    counts = target_counts(train, max_train_targets) + 1
    evaluated = target_counts(held_out)
    nats = float(evaluated @ (math.log(counts.sum()) - np.log(counts)))
    return UnigramBaseline(nats / held_out.info.targets, nats / math.log(2) / held_out.info.bytes)


def target_counts(split: PackedSplit, at_least: int | None = None) -> npt.NDArray[np.int64]:
    """How often each token id is a target, [vocab_size]; stops early once `at_least` are counted."""
    counts = np.zeros(split.manifest.tokenizer.vocab_size, dtype=np.int64)
    for block in split.blocks():
        for first in range(0, len(block.tokens), _ROWS_AT_A_TIME):
            targets = _targets(block, first, min(first + _ROWS_AT_A_TIME, len(block.tokens)))
            counts += np.bincount(targets, minlength=len(counts))
            if at_least is not None and counts.sum() >= at_least:
                return counts
    return counts


def _targets(block: Block, first: int, last: int) -> npt.NDArray[np.unsignedinteger]:
    """The target tokens of some rows."""
    tokens = block.tokens[first:last]
    offsets = block.span_offsets[first : last + 1]
    spans = block.target_spans[offsets[0] : offsets[-1]].reshape(-1, 2).astype(np.int64)
    spans += (np.repeat(np.arange(last - first), np.diff(offsets) // 2) * tokens.shape[1])[:, None]
    edges = np.zeros(tokens.size + 1, dtype=np.int32)
    edges[spans[:, 0]] += 1
    edges[spans[:, 1]] -= 1
    return tokens.reshape(-1)[np.cumsum(edges[:-1]) > 0]
