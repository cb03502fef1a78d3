"""Image classifiers, as modules whose forward returns a sum of losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland.trainers.methods.base import Outputs
from lowland.trainers.methods.objective import Objective


@dataclass(frozen=True)
class ImageInput:
    """What a network sees and tells apart, which the data decide."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


def logits_of(found: Any) -> Tensor:
    """A network's logits, fp32 [B, K], of what it gives: themselves, or something that has them as `logits`."""
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    # A copy in any case: where CUDA graphs are, the network's own lie where its next pass writes.
    return logits.to(torch.float32, copy=True)


class ImageClassifierLoss(nn.Module):
    """A classifier with its normalisation and its loss.

    Args:
        network: gives logits [B, K] of images [B, C, S, S], or something that has them as `logits`.
        seen: what images are.
        label_smoothing: part of the target that is spread over all classes, in training, in [0, 1).
        channels_last: give the network images with channels last in memory.
        objective: makes of the losses what is differentiated in training; None sums them up.
        features_of: the classifier, where the objective wants what it is given.
    """

    def __init__(
        self,
        network: nn.Module,
        seen: ImageInput,
        *,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        objective: Objective | None = None,
        features_of: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._objective = objective
        self._features: Tensor | None = None
        if features_of is not None:
            features_of.register_forward_pre_hook(self._keep_features)
        self._smoothing, self._channels_last = label_smoothing, channels_last
        # No buffers: they are to stay fp32 whatever the weights become, and an export says them beside the weights.
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (seen.mean, seen.std))

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        groups: Tensor | None = None,
        other_labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        others: Tensor | None = None,
        pixel_weights: Tensor | None = None,
    ) -> Tensor:
        """The sum over images of cross-entropies (nats, fp32); without labels the logits, fp32 [B, K].

        Args:
            images: uint8 [B, C, S, S].
            labels: int64 [B].
            rows: int64 [B], which images of the training set these are; for the objective.
            groups: int64 [B], likewise.
            other_labels: int64 [B], of what is mixed in; None without mixing.
            label_weights: float32 [B] in [0, 1], weight of `labels` then.
            others: uint8 [B, C, S, S], images to blend with; None without MixUp.
            pixel_weights: float32 [B] in [0, 1], weight of `images` then.
        """
        logits = self.logits(self.normalised(images, others, pixel_weights))
        if labels is None:
            return logits
        losses = self._losses(logits, labels)
        if other_labels is not None and label_weights is not None:
            losses = label_weights * losses + (1 - label_weights) * self._losses(logits, other_labels)
        if self._objective is None or not self.training:
            return losses.sum()
        targets = self._targets(labels, logits)
        if other_labels is not None and label_weights is not None:
            weights = label_weights[:, None]
            targets = weights * targets + (1 - weights) * self._targets(other_labels, logits)
            labels = torch.where(label_weights >= 0.5, labels, other_labels)
        return self._objective(Outputs(logits, targets, labels, losses, self._features, groups, rows))

    def _targets(self, labels: Tensor, logits: Tensor) -> Tensor:
        classes = logits.shape[1]
        return functional.one_hot(labels, classes) * (1 - self._smoothing) + self._smoothing / classes

    def _keep_features(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._features = arguments[0]

    def normalised(self, images: Tensor, others: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """What the network sees of bytes, in the type of its weights: [B, C, S, S]."""
        values = images.float() / 255
        if others is not None and weights is not None:
            weight = weights.view(-1, 1, 1, 1)
            values = weight * values + (1 - weight) * (others.float() / 255)
        values = ((values - self._mean) / self._std).to(next(self.network.parameters()).dtype)
        return values.contiguous(memory_format=torch.channels_last) if self._channels_last else values

    def logits(self, seen: Tensor) -> Tensor:
        """The network's logits, fp32 [B, K]."""
        return logits_of(self.network(seen))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "ImageClassifierLoss":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(self._mean).device
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self._smoothing if self.training else 0.0
        return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
