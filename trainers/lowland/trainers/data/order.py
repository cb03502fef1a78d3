"""The order of examples: an endless stream in which each epoch is a permutation of the rows."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 8


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
        self._half_bits = np.uint64(max(1, ((rows - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)

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

    def _permuted(self, epoch: int, offset: int, count: int) -> Indices:
        keys = np.random.SeedSequence([self.seed, epoch]).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
        values = self._feistel(np.arange(offset, offset + count, dtype=np.uint64), keys)
        # The network permutes the next power of four, at most four times as many values as there are
        # rows; applying it again to those outside (cycle walking) makes it a permutation of the rows.
        while (outside := values >= self.rows).any():
            values[outside] = self._feistel(values[outside], keys)
        return values.astype(np.int64)

    def _feistel(self, values: _Words, keys: _Words) -> _Words:
        left, right = values >> self._half_bits, values & self._mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half_bits) | right


def _mix(x: _Words) -> _Words:
    """A bijective mixer of 64-bit integers in which every input bit changes each output bit half of the time."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
