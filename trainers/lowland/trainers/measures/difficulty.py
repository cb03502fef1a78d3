"""How hard single examples are.

    EL2N        |softmax(z) - onehot(y)|_2, early in training; larger is harder   Paul et al., arXiv 2107.07075
    forgetting  how often an example that was classified rightly no longer is     Toneva et al., arXiv 1812.05159

Examples are known by their index in the data, so that ranks may see any part of them.
"""

import math

import torch
from torch import Tensor

from lowland.trainers.world import World

__all__ = ["ForgettingCounts", "difficulty_bins", "el2n"]


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """The norm of the error of each prediction, in [0, sqrt(2)]: [n].

    Args:
        logits: [n, C].
        labels: int64 [n].
    """
    errors = logits.float().softmax(-1)
    errors[torch.arange(len(labels)), labels] -= 1
    norms: Tensor = errors.norm(dim=-1)
    return norms


class ForgettingCounts:
    """Learning and forgetting of each example over the evaluations of a training.

    Args:
        examples: how many there are; their indices are in [0, examples).
    """

    def __init__(self, examples: int) -> None:
        self._right = torch.zeros(examples, dtype=torch.bool)
        self._learned = torch.zeros(examples, dtype=torch.bool)
        self._forgotten = torch.zeros(examples, dtype=torch.int64)

    def add(self, indices: Tensor, right: Tensor) -> None:
        """Takes down whether examples are classified rightly now; each at most once a call.

        Args:
            indices: int64 [n].
            right: bool [n].
        """
        indices, right = indices.cpu(), right.cpu()
        self._forgotten[indices] += self._right[indices] & ~right
        self._right[indices] = right
        self._learned[indices] |= right

    def counts(self, world: World) -> Tensor:
        """How often each example was forgotten, inf if it was never right: float64 [examples]; collective.

        Each example must always be given by the same rank: what another one knew of it is not asked.
        """
        forgotten = world.sum(self._forgotten.tolist())
        learned = world.sum(self._learned.double().tolist())
        return torch.tensor([f if seen else math.inf for f, seen in zip(forgotten, learned, strict=True)]).double()


def difficulty_bins(scores: Tensor, bins: int) -> Tensor:
    """The bin of each example by its rank among the scores, 0 the easiest: int64 [n].

    Bins hold equally many examples, give or take one; equal scores are parted by index.  With `GroupTotals` the bins
    are groups whose losses over time say whether what is hard is learned later.

    Args:
        scores: [n], larger is harder.
        bins: how many, at least 1.
    """
    if bins < 1:
        raise ValueError(f"bins >= 1 must hold, got {bins}")
    ranks = torch.empty(len(scores), dtype=torch.int64)
    ranks[scores.cpu().argsort(stable=True)] = torch.arange(len(scores))
    return ranks * bins // max(len(scores), 1)
