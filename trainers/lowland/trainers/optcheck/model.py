"""A model that is awkward to shard, and its data."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland.trainers.optcheck.cases import Case

__all__ = ["ROWS", "TOKENS", "Awkward", "batch"]

VOCABULARY, WIDTH, HIDDEN = 13, 7, 10
ROWS, LENGTH = 8, 6
TOKENS = ROWS * LENGTH


class Gain(nn.Module):
    """One factor: a tensor of fewer elements than there are ranks."""

    def __init__(self, *, matrix: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1) if matrix else torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """x times it."""
        return x * self.weight


class Awkward(nn.Module):
    """Predicts tokens; sizes by which ZeRO's partitions cut through tensors and padding occurs.

    Its forward returns the sum of losses, as engines want it.
    """

    def __init__(self, case: Case, *, matrices_only: bool) -> None:
        torch.manual_seed(5)
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=not matrices_only)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=not matrices_only)
        self.gain = Gain(matrix=matrices_only)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if "tied" in case.features:
            self.head.weight = self.embedding.weight
        if "frozen" in case.features:
            self.down.weight.requires_grad_(False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Sum of losses of ids and labels, int64 [B, L]."""
        x = self.embedding(ids)
        x = x + self.gain(self.down(torch.tanh(self.up(x))))
        return functional.cross_entropy(self.head(x).flatten(0, 1).float(), labels.flatten(), reduction="sum")


def batch(step: int) -> dict[str, Tensor]:
    """ids and labels of a step's global batch, int64 [ROWS, LENGTH]."""
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    return {"ids": ids, "labels": (ids * 5 + 1) % VOCABULARY}
