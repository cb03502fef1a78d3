"""Two classifiers as one: their mean prediction, and their training on halves of the data (CrossSplit)."""

import math
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import Outputs
from lowland.trainers.methods.cross_split import CrossSplit, in_turn
from lowland.trainers.methods.objective import Objective
from lowland.trainers.models.image_classifier import ImageClassifierLoss, ImageInput, logits_of


def mean_prediction(first: Tensor, second: Tensor) -> Tensor:
    """Logits [B, K] whose probabilities are the means of two classifiers', of their logits [B, K]."""
    both = torch.stack([torch.log_softmax(first, dim=1), torch.log_softmax(second, dim=1)])
    return both.logsumexp(dim=0) - math.log(2)


class NetworkPair(nn.Module):
    """Two classifiers of the same images.

    Args:
        first: gives logits, or something that has them as `logits`.
        second: likewise.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def alone(self, index: int, images: Tensor) -> Tensor:
        """fp32 logits [B, K] of one network, 0 or 1, of normalised images [B, C, S, S]."""
        return logits_of((self.first, self.second)[index](images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of the mean prediction."""
        return mean_prediction(self.alone(0, images), self.alone(1, images))


class CrossSplitLoss(ImageClassifierLoss):
    """Two classifiers with the loss of CrossSplit; in evaluation that of their mean prediction.

    In training, images at even places are of the first network's half, those at odd places of the second's.

    Args:
        pair: the networks.
        seen: what images are.
        method: corrects targets; one of those of `objective`.
        objective: makes of losses what is differentiated.
        channels_last: give the networks images with channels last in memory.
    """

    def __init__(
        self,
        pair: NetworkPair,
        seen: ImageInput,
        method: CrossSplit,
        objective: Objective,
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__(pair, seen, channels_last=channels_last, objective=objective)
        self._method, self._whole = method, objective

    @property
    def pair(self) -> NetworkPair:
        """The networks."""
        assert isinstance(self.network, NetworkPair)
        return self.network

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
        partners: Tensor | None = None,
        views: Tensor | None = None,
        network: Tensor | None = None,
    ) -> Tensor:
        """As `ImageClassifierLoss.forward`, which says what the others are; images of training are not mixed.

        Args:
            partners: int64 [B], the image of the batch that each is blended with, once labels are corrected.
            pixel_weights: float32 [B], what each keeps of itself then.
            views: uint8 [B, V, C, S, S], lightly augmented, that the networks predict; None while no label is
                corrected.
            network: int64 [], 0 or 1: give the logits of this network alone.
        """
        if network is not None:
            return self.pair.alone(int(network), self.normalised(images))
        if labels is None or rows is None or not self.training:
            return super().forward(images, labels)
        guesses = None
        if views is not None:
            guesses = self._method.guesses(labels, rows, lambda: self._predictions(views))
        if not self._method.warming_up:
            if guesses is None:
                raise RecipeError(
                    "cross_split: this training was begun with another number of examples a step, by which its batches "
                    "know when labels are corrected; resume it with batch.global_images as it was"
                )
            outputs = self._corrected(images, labels, guesses, partners, pixel_weights)
        else:
            logits = self._own_logits(images)
            outputs = _outputs(logits, functional.one_hot(labels, logits.shape[1]).to(logits), labels)
        return self._whole(replace(outputs, groups=groups, rows=rows))

    def _corrected(
        self, images: Tensor, labels: Tensor, guesses: Tensor, partners: Tensor | None, weights: Tensor | None
    ) -> Outputs:
        """Each network on corrected labels of its half, and on the other half if that counts."""
        targets, other_targets = self._method.targets(labels, guesses)
        others = None if partners is None else images[partners]
        if partners is not None and weights is not None:
            targets, other_targets = _blended(targets, other_targets, partners, weights)
        if not self._method.settings.unlabelled:
            return _outputs(self._own_logits(images, others, weights), targets, labels)
        seen = self.normalised(images, others, weights)
        first, second = (self.pair.alone(index, seen) for index in (0, 1))
        outputs = _outputs(in_turn(first[0::2], second[1::2]), targets, labels)
        return replace(outputs, other_logits=in_turn(second[0::2], first[1::2]), other_targets=other_targets)

    def _own_logits(self, images: Tensor, others: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Of each image by the network of its half: [B, K]."""
        halves = []
        for index in (0, 1):
            part = [None if values is None else values[index::2] for values in (images, others, weights)]
            assert part[0] is not None
            halves.append(self.pair.alone(index, self.normalised(part[0], part[1], part[2])))
        return in_turn(halves[0], halves[1])

    @torch.no_grad()
    def _predictions(self, views: Tensor) -> Tensor:
        """Mean probabilities [B, K] over each image's views, by the network that is not trained on its label."""
        average = self._method.average
        pair = self.pair if average is None else average.network
        assert isinstance(pair, NetworkPair)
        pair.eval()
        try:
            first, second = (self._mean_chances(pair, index, views[1 - index :: 2]) for index in (0, 1))
        finally:
            self.pair.train()
        return in_turn(second, first)

    def _mean_chances(self, pair: NetworkPair, index: int, views: Tensor) -> Tensor:
        seen = self.normalised(views.flatten(0, 1))
        # Averages are fp32 beside weights in bf16, too.
        with nullcontext() if seen.dtype == torch.float32 else torch.autocast(seen.device.type, seen.dtype):
            logits = pair.alone(index, seen)
        return torch.softmax(logits, dim=1).view(len(views), views.shape[1], -1).mean(dim=1)


def _outputs(logits: Tensor, targets: Tensor, labels: Tensor) -> Outputs:
    losses = -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1)
    return Outputs(logits, targets, labels, losses)


def _blended(targets: Tensor, other_targets: Tensor, partners: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of blended images: each network's are blended with its own of the partners.

    Args:
        targets: [B, K], for the network of each image's half.
        other_targets: [B, K], for the other one.
        partners: int64 [B].
        weights: float32 [B].
    """
    first, second = in_turn(targets[0::2], other_targets[1::2]), in_turn(other_targets[0::2], targets[1::2])
    own = weights[:, None]
    first, second = (own * each + (1 - own) * each[partners] for each in (first, second))
    return in_turn(first[0::2], second[1::2]), in_turn(second[0::2], first[1::2])
