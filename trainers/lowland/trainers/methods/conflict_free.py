"""ConFIG: the direction that makes equal angles with the gradients of all losses.

Liu, Chu, Thuerey, *ConFIG: towards conflict-free training of physics informed neural networks* (2025), eqs. 2 and 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowland.optim import Weights
from lowland.trainers.methods.base import GlobalBatch, Method, SeveralGradients
from lowland.trainers.world import World


def mixture(products: Tensor, preference: Sequence[float] | None = None) -> Tensor:
    """What each gradient is multiplied by so that their sum is free of conflict.

    d = pinv(unit rows) w, u = d / |d|, result (sum_i g_i . u) u.  All of it lies in the span of the gradients, and
    so follows from their products.

    Args:
        products: float64 [m, m], g_i . g_j, over all ranks: the map is not linear, so that averages come before.
        preference: w, above 0: cosines with the result are in these proportions; None is all alike.

    Returns:
        float64 [m]; 0 where opposite gradients leave no direction, and for gradients that are 0.
    """
    norms = products.diagonal().sqrt()
    used = norms > 0
    factors = torch.zeros_like(norms)
    if int(used.sum()) <= 1:
        # The only gradient is its own direction, to the last bit.
        factors[used] = 1.0
        return factors
    lengths = norms[used]
    cosines = products[used][:, used] / (lengths[:, None] * lengths)
    wanted = torch.ones_like(norms) if preference is None else norms.new_tensor(preference)
    # pinv(U) = U' pinv(U U')
    inner = torch.linalg.pinv(cosines, hermitian=True) @ wanted[used]
    along = cosines @ inner
    square = inner @ along
    if float(square) > 1e-24:
        factors[used] = (lengths @ along) * inner / (square * lengths)
    return factors


def conflict_free(gradients: Tensor, preference: Sequence[float] | None = None) -> Tensor:
    """One gradient for m losses: positive along each of theirs, as long as their projections on it together.

    Args:
        gradients: [m, n].
        preference: as of `mixture`.

    Returns:
        [n], of the gradients' type.
    """
    wide = gradients.double()
    combined: Tensor = mixture(wide @ wide.T, preference) @ wide
    return combined.to(gradients.dtype)


class ConFIG(SeveralGradients, Method):
    """The mean losses of the groups as the several losses.

    Each step takes a gradient for each group, one after the other, and combines those over all ranks; a group without
    an example in the batch has none.  Memory: a copy of this rank's gradients for each group but one.

    Args:
        groups: their number.
    """

    name = "conflict_free"
    of_batch = True

    def __init__(self, groups: int) -> None:
        self.parts = groups
        self.part = 0
        self._factors: list[float] = []

    def weights(self, batch: GlobalBatch) -> Tensor:
        """Those that make of the mean loss the mean loss of the group at hand."""
        assert batch.groups is not None, "data without groups are refused before"
        own = batch.groups == self.part
        share = own.double().mean()
        return own / share if bool(own.any()) else torch.zeros_like(batch.losses)

    @torch.no_grad()
    def combine(self, taken: Sequence[Sequence[Tensor]], weights: Weights, world: World, *, replicated: bool) -> None:
        """Puts the combination in the place of the last gradients."""
        last = [gradient for _, _, gradient in weights.gradients()]
        rows = [*taken, last]
        products = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for i, first in enumerate(rows):
            for j, second in enumerate(rows[: i + 1]):
                dots = [(a.double() * b.double()).sum() for a, b in zip(first, second, strict=True)]
                products[i, j] = products[j, i] = float(torch.stack(dots).sum()) if dots else 0.0
        if not replicated:
            products = torch.tensor(world.sum(products.flatten().tolist()), dtype=torch.float64).view_as(products)
        self._factors = mixture(products).tolist() if bool(products.isfinite().all()) else [1.0] * len(rows)
        for index, gradient in enumerate(last):
            total = gradient * self._factors[-1]
            for factor, row in zip(self._factors, taken, strict=False):
                total += factor * row[index]
            gradient.copy_(total)
        weights.gradients_changed()

    def metrics(self) -> dict[str, float]:
        """What each group's gradient was multiplied by in the last step."""
        return {f"group_{group}/factor": factor for group, factor in enumerate(self._factors)}
