"""The order of examples: an endless stream in which each epoch is a permutation of the rows."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 8
_BLOCK = 4096
"""Examples whose rows are found at once: those of a small batch take as long, in calls that hold up other threads."""
_HALVES = 0x5EED
"""Tells the choice of halves from other uses of a seed."""


class Order:
    """Which row is the i-th example of a training, for any i, in constant memory.

    Example i belongs to epoch i // rows.  Each epoch is a permutation of the rows that depends on
    (seed, epoch) alone: a Feistel network whose round keys come from both, walked along its cycle
    until it lands below `rows`.  A stored permutation would cost 8 bytes per row in every process
    and the start of every epoch a shuffle of all of them.
    """

    def __init__(self, rows: int, seed: int) -> None:
        if rows < 1:
            raise ValueError("an order needs at least one row")
        self.rows, self.seed = rows, seed

    def examples(self, start: int, count: int) -> Indices:
        """Row indices [count] of the examples start, start + 1, …"""
        result = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            epoch, offset = divmod(start + done, self.rows)
            here = min(count - done, self.rows - offset)
            result[done : done + here] = self._permuted(epoch, offset, here)
            done += here
        return result

    def epochs(self, examples: Indices) -> Indices:
        """Which pass over the rows each of the examples belongs to, [count]."""
        return examples // self.rows

    def _permuted(self, epoch: int, offset: int, count: int) -> Indices:
        if count >= _BLOCK:
            return _permuted(self.rows, self.seed, epoch, offset, count)
        blocks = range(offset // _BLOCK, (offset + count - 1) // _BLOCK + 1)
        found = np.concatenate([_block(self.rows, self.seed, epoch, block) for block in blocks])
        return found[offset - blocks.start * _BLOCK :][:count]


@lru_cache(maxsize=8)
def _block(rows: int, seed: int, epoch: int, block: int) -> Indices:
    start = block * _BLOCK
    return _permuted(rows, seed, epoch, start, min(_BLOCK, rows - start))


def _permuted(rows: int, seed: int, epoch: int, offset: int, count: int) -> Indices:
    """Which rows are the examples offset, offset + 1, … of an epoch: [count]."""
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    half_bits = np.uint64(max(1, ((rows - 1).bit_length() + 1) // 2))
    values = _feistel(np.arange(offset, offset + count, dtype=np.uint64), keys, half_bits)
    # The network permutes the next power of four, at most four times as many values as there are
    # rows; applying it again to those outside (cycle walking) makes it a permutation of the rows.
    while (outside := values >= rows).any():
        values[outside] = _feistel(values[outside], keys, half_bits)
    return values.astype(np.int64)


def _feistel(values: _Words, keys: _Words, half_bits: np.uint64) -> _Words:
    mask = np.uint64((1 << int(half_bits)) - 1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


class HalvesOrder:
    """Two disjoint halves of the rows in turn: even examples are of the first half, odd ones of the second.

    Which half a row is in depends on (seed, row) alone.  Each half has an `Order` of its own, so that it is passed
    over as in a training on its rows alone.  Of an odd number of rows the first half has one more; the second
    half then begins its next epoch one example earlier.

    Args:
        rows: of both halves, at least 2.
        seed: decides the halves.
        seeds: of the orders of the halves.
    """

    def __init__(self, rows: int, seed: int, seeds: tuple[int, int]) -> None:
        if rows < 2:
            raise ValueError("two halves need at least two rows")
        # Another stream than that of a training with this seed.
        shuffled = np.random.default_rng([seed, _HALVES]).permutation(rows)
        first = -(-rows // 2)
        self.halves = (np.sort(shuffled[:first]), np.sort(shuffled[first:]))
        """Rows of each, ascending; in memory, 8 bytes a row."""
        self._orders = tuple(Order(len(half), own) for half, own in zip(self.halves, seeds, strict=True))

    def examples(self, start: int, count: int) -> Indices:
        """Row indices [count] of the examples start, start + 1, …"""
        result = np.empty(count, dtype=np.int64)
        for parity, (half, order) in enumerate(zip(self.halves, self._orders, strict=True)):
            places = result[(parity - start) % 2 :: 2]
            first = (start + 1 - parity) // 2
            places[...] = half[order.examples(first, len(places))]
        return result

    def epochs(self, examples: Indices) -> Indices:
        """Which pass over its half each of the examples belongs to, [count]."""
        sizes = np.array([len(half) for half in self.halves])
        passes: Indices = examples // 2 // sizes[examples % 2]
        return passes


def _mix(x: _Words) -> _Words:
    """A bijective mixer of 64-bit integers in which every input bit changes each output bit half of the time."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
