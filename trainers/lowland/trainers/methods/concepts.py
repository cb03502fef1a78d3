"""Concepts of images, found in feature maps without labels, and how often images come if concepts are balanced."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def concept_centres(cells: Tensor, count: int, seed: int) -> Tensor:
    """Centres of cells by k-means, on one thread, so that the same cells give the same bits.

    Args:
        cells: [n, d], n >= count; their directions alone count.
        count: K, centres.
        seed: of where they begin.

    Returns:
        float64 [K, d], on the CPU.
    """
    from sklearn.cluster import KMeans  # a second of imports
    from threadpoolctl import threadpool_limits

    points = _directions(cells).numpy()
    with threadpool_limits(1):
        found = KMeans(count, n_init=4, random_state=seed).fit(points)
    return torch.from_numpy(found.cluster_centers_)


def concepts_of(cells: Tensor, centres: Tensor, least_share: float) -> Tensor:
    """Which concepts each image has.

    Args:
        cells: [B, T, d], of each image.
        centres: [K, d].
        least_share: part of an image's cells, in [0, 1], that must be nearest to a centre; its commonest one it has in
            any case.

    Returns:
        bool [B, K], on the CPU.
    """
    points = _directions(cells)
    # The squared length of a cell is the same for all centres.
    distances = centres.square().sum(1) - 2 * points @ centres.T
    shares = functional.one_hot(distances.argmin(2), len(centres)).double().mean(1)
    commonest = functional.one_hot(shares.argmax(1), len(centres)).bool()
    return ((shares >= least_share) & (shares > 0)) | commonest


def balanced_weights(concepts: Tensor, labels: Tensor, strength: float = 1.0) -> Tensor:
    """How often each image comes in an epoch, on average.

    Images of a class weigh by the mean over their concepts of n^-strength, for n images of the class that have the
    concept; classes come as often as they do in the data.  With one concept for each image and strength 1, each
    concept of a class comes equally often.

    Args:
        concepts: bool [N, K]; each image has at least one.
        labels: int64 [N].
        strength: in [0, 1]: 0 gives 1 for all.

    Returns:
        float64 [N], of mean 1, also over each class.
    """
    classes = int(labels.max()) + 1
    has = concepts.double()
    counts = torch.zeros(classes, has.shape[1], dtype=torch.float64).index_add_(0, labels, has)
    rarities = counts.clamp(min=1) ** -strength
    weights = (has * rarities[labels]).sum(1) / has.sum(1)
    sizes = torch.bincount(labels, minlength=classes).double()
    totals = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, weights)
    balanced: Tensor = weights * sizes[labels] / totals[labels]
    return balanced


def _directions(cells: Tensor) -> Tensor:
    """Cells of length 1, float64 on the CPU."""
    return functional.normalize(cells.detach().double().cpu(), dim=-1)


@dataclass
class FeatureMap:
    """The last feature map that the latest forward pass made."""

    channels_last: bool = False
    """Whether maps are [B, H, W, d], as in some networks of timm."""
    _values: Tensor | None = None

    @property
    def cells(self) -> Tensor | None:
        """[B, T, d], T > 1: a vector for each place; None if the network made no map."""
        values = self._values
        if values is None:
            return None
        if values.dim() == 4:
            return values.flatten(2).transpose(1, 2)
        tokens = values.shape[1]
        # A transformer's class token is at no place.
        return values[:, 1:] if isqrt(tokens - 1) ** 2 == tokens - 1 else values

    def _see(self, module: nn.Module, given: Any, made: Any) -> None:
        if not isinstance(made, Tensor) or not made.is_floating_point():
            return
        if made.dim() == 4 and self.channels_last:
            made = made.permute(0, 3, 1, 2)
        # What has a width of 1 is no map: pooled tokens [B, d, 1], or a single cell [B, 1, 1, d].
        is_map = made.dim() == 4 and made[0, 0].numel() > 1 and made.shape[1] > 1
        if is_map or (made.dim() == 3 and made.shape[1] > 2 and made.shape[2] > 1):
            self._values = made


@contextmanager
def feature_map(network: nn.Module) -> Iterator[FeatureMap]:
    """Sees the last map [B, d, H, W], or tokens [B, T, d], of each forward pass inside."""
    own = (getattr(module, "timm_model", None) for module in network.modules())
    seen = FeatureMap(any(getattr(each, "output_fmt", None) == "NHWC" for each in own))
    hooks = [module.register_forward_hook(seen._see) for module in network.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
