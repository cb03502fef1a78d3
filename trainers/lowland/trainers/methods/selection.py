"""The k-th smallest of numbers that lie in pieces on several ranks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Add = Callable[[Tensor], Tensor]
"""The sum of an int64 tensor over ranks; collective."""


def smallest_until(pieces: Sequence[Tensor], sets: Sequence[int], counts: Sequence[int], add: Add) -> Tensor:
    """For each set of numbers the k-th smallest, exactly, by bisecting the bits of fp32.

    Floats of one sign are ordered as their bits are as integers; so 31 times, the numbers up to a candidate are
    counted and the counts summed over ranks.  The result does not depend on how the numbers are spread.

    Args:
        pieces: this rank's numbers, not negative, any shape.
        sets: for each piece the index of the set that it belongs to.
        counts: k of each set, from 0 to its size over all ranks; 0 gives -1, below every number.
        add: sums over ranks.

    Returns:
        float32 [sets], on the CPU.
    """
    bits = [piece.detach().float().contiguous().view(torch.int32) for piece in pieces]
    wanted = torch.tensor(counts, dtype=torch.int64)
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, 2**31 - 1)
    while bool((low < high).any()):
        middle = (low + high) // 2
        below = torch.zeros_like(wanted)
        for piece, index in zip(bits, sets, strict=True):
            below[index] += (piece <= int(middle[index])).sum().cpu()
        enough = add(below) >= wanted
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    found = low.to(torch.int32).view(torch.float32)
    return torch.where(wanted > 0, found, -1.0)
