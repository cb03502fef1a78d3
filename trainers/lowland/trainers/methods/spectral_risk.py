"""Losses weighted by their rank: spectral risks, regularised by a chi-square divergence.

Mehta, Roulet, Pillutla, Liu, Harchaoui, *Stochastic optimization for spectral risk measures* (2023), and
*Distributionally robust optimization with bias and variance reduction* (2024).  The risk of losses l_1..l_n under a
non-decreasing spectrum sigma is

    max over q in the permutahedron of sigma:   q' l - nu n |q - 1/n|^2 .

Taken over a batch it is a biased estimate of that over the data, as is usual for such losses.
"""

import math
from typing import Literal

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from lowland.trainers.methods.base import GlobalBatch, Method

Spectrum = Literal["superquantile", "extremile", "esrm"]


def spectrum(kind: Spectrum, parameter: float, count: int) -> Tensor:
    """The weights of `count` losses by ascending rank, times their number, so that their mean is 1.

    Args:
        kind: superquantile: the mean of the share 1 - parameter of largest losses (CVaR), parameter in [0, 1);
            extremile: the expected largest of `parameter` losses, at least 1; esrm: weights e^(parameter * rank / n),
            parameter above 0.
        parameter: 0, 1 and the limit 0 in that order are the plain mean.
        count: n.
    """
    rank = torch.arange(1, count + 1, dtype=torch.float64)
    weights: Tensor
    if kind == "superquantile":
        weights = (rank - count * parameter).clamp(0, 1) / (1 - parameter)
    elif kind == "extremile":
        weights = (rank**parameter - (rank - 1) ** parameter) / float(count) ** (parameter - 1)
    else:
        upper = torch.exp(parameter * (rank / count - 1))
        weights = count * upper * math.expm1(-parameter / count) / math.expm1(-parameter)
    return weights


def risk_weights(losses: Tensor, weights_by_rank: Tensor, nu: float) -> Tensor:
    """n q for the maximising q: what each loss counts, with mean 1; costs a sort and an isotonic regression.

    Args:
        losses: [n]
        weights_by_rank: [n], n sigma, non-decreasing, with mean 1.
        nu: 0: equal losses share their weights; towards infinity all weights become 1.

    Returns:
        float64 [n] on the losses' device.
    """
    ordered, order = losses.detach().double().cpu().sort()
    by_rank = _shared_by_ties(ordered, weights_by_rank) if nu == 0 else _drawn_to_one(ordered, weights_by_rank, nu)
    return torch.empty_like(by_rank).index_copy(0, order, by_rank).to(losses.device)


def _shared_by_ties(ordered: Tensor, weights: Tensor) -> Tensor:
    _, index, counts = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=weights.dtype).index_add(0, index, weights)
    shared: Tensor = sums / counts
    return shared[index]


def _drawn_to_one(ordered: Tensor, weights: Tensor, nu: float) -> Tensor:
    """The optimality conditions: n q = z - r, where z = l / (2 nu) + 1 and r is the isotonic fit of z - n sigma."""
    scaled = ordered / (2 * nu)
    if bool((weights == 1).all()):
        return weights  # else rounding of large losses would be left of them
    fit = torch.from_numpy(isotonic_regression((scaled + 1 - weights).numpy()).x)
    return scaled + 1 - fit


class SpectralRisk(Method):
    """Multiplies each loss by its weight in the global batch.

    Args:
        kind: the spectrum.
        parameter: its parameter.
        nu: strength of the divergence that draws weights to 1, at least 0.
    """

    name = "spectral_risk"
    of_batch = True

    def __init__(self, kind: Spectrum, parameter: float, nu: float = 0.0) -> None:
        self._kind, self._parameter, self._nu = kind, parameter, nu
        self._largest = 1.0

    def weights(self, batch: GlobalBatch) -> Tensor:
        """float64 [N]; losses that are not finite are left to the engine, which discards the step."""
        count = len(batch.losses)
        if not bool(batch.losses.isfinite().all()):
            return torch.ones_like(batch.losses)
        weights = risk_weights(batch.losses, spectrum(self._kind, self._parameter, count), self._nu)
        self._largest = float(weights.max())
        return weights

    def metrics(self) -> dict[str, float]:
        """The largest weight in the last batch."""
        return {"largest_weight": self._largest}
