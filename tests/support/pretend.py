"""Ranks that are threads of this process, and tensors cut over them as ZeRO does, for tests that need no engine."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lowland.optim import Fragment, Layout, Parameter, Segment

PADDING = float("nan")
"""At the end of every piece: whatever takes padding in is not a number."""


class PretendRanks:
    """What `lowland.optim.Ranks` is between processes."""

    device = torch.device("cpu")

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._slots = barrier, slots

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value."""
        self._slots[self.rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values

    def add(self, tensor: Tensor) -> None:
        """Sums over the ranks."""
        values = self.gather(tensor.clone())
        tensor.copy_(torch.stack(values).sum(0))

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """One part for each rank, one from each."""
        got = [theirs[self.rank] for theirs in self.gather([part.clone() for part in parts])]
        assert [part.numel() for part in got] == list(sizes)
        return got


def together(size: int, function: Callable[[PretendRanks], Any]) -> list[Any]:
    """Calls the function on every rank at once; their results in order, or the first error."""
    barrier, slots = threading.Barrier(size, timeout=60), [None] * size

    def call(rank: int) -> Any:
        try:
            return function(PretendRanks(rank, size, barrier, slots))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(call, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors
    return [future.result() for future in futures]


def piece_of(tensors: Sequence[Tensor], bounds: Sequence[int], rank: int, padding: int = 3) -> Tensor:
    """What a rank holds of the tensors laid one after the other and cut at `bounds`, padded."""
    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
    return torch.cat([flat[bounds[rank] : bounds[rank + 1]], torch.full((padding,), PADDING)])


def cut(named: Mapping[str, Tensor], bounds: Sequence[int], ranks: Any) -> tuple[nn.Parameter, Layout]:
    """A rank's flat piece of all tensors, and the layout that says what is in it."""
    flat = nn.Parameter(piece_of(list(named.values()), bounds, ranks.rank))
    low, high = bounds[ranks.rank], bounds[ranks.rank + 1]
    starts = torch.tensor([0, *(tensor.numel() for tensor in named.values())]).cumsum(0).tolist()
    segments = []
    for index, (start, end) in enumerate(pairwise(starts)):
        first, last = max(start, low), min(end, high)
        if first < last:
            segments.append(Segment(index, first - low, last - first, first - start))
    parameters = tuple(Parameter(name, tuple(tensor.shape), 0) for name, tensor in named.items())
    fragment = Fragment(flat, tuple(segments), 0, tuple(range(len(parameters))))
    return flat, Layout(parameters, (fragment,), ranks)


def joined(pieces: Sequence[Tensor], padding: int = 3) -> Tensor:
    """The ranks' pieces without their padding, one after the other; the padding must be as it was."""
    assert all(bool(piece[len(piece) - padding :].isnan().all()) for piece in pieces)
    return torch.cat([piece[: len(piece) - padding] for piece in pieces])
