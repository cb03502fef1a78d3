"""What is counted of predictions, and the measures that follow: sums over examples, so that ranks can be added up."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Counts = npt.NDArray[np.float64]

BINS = 15
"""Bins of confidence, equally wide, of the calibration error (Guo et al., 2017)."""
MANY_CLASSES = 100
"""Classes up to which each has a metric of its own."""
MISTAKES = 16
"""Mistakes that are kept to be shown."""


@dataclass(frozen=True)
class Mistake:
    """An image whose class was not found."""

    confidence: float
    """Of the wrong class, in (0, 1]."""
    row: int
    """Number of the image in its set."""
    label: int
    predicted: int


class Tally:
    """Counts over images whose logits were seen.

    Args:
        classes: K.
        groups: G; 0 without groups.
    """

    def __init__(self, classes: int, groups: int = 0) -> None:
        self.confusion: Counts = np.zeros((classes, classes))
        """[K, K]: images of a class (row) that were taken for a class (column)."""
        self.groups: Counts = np.zeros((groups, 2))
        """[G, 2]: images, and those that were right."""
        self.bins: Counts = np.zeros((BINS, 3))
        """[BINS, 3]: images, those that were right, and the sum of confidences."""
        self.loss = 0.0
        self.top5 = 0.0
        self.mistakes: list[Mistake] = []

    def add(self, logits: Tensor, labels: Tensor, rows: Tensor, groups: Tensor | None = None) -> None:
        """Counts images.

        Args:
            logits: fp32 [B, K], on any device.
            labels: int64 [B], on the CPU as the rest.
            rows: int64 [B].
            groups: int64 [B].
        """
        chances = torch.log_softmax(logits.cpu().double(), dim=1)
        self.loss -= float(chances.gather(1, labels[:, None]).sum())
        confidences, predicted = chances.exp().max(dim=1)
        right = predicted == labels
        top = logits.cpu().topk(min(5, logits.shape[1]), dim=1).indices
        self.top5 += float((top == labels[:, None]).any(1).sum())
        np.add.at(self.confusion, (labels.numpy(), predicted.numpy()), 1)
        bins = (confidences * BINS).long().clamp(max=BINS - 1).numpy()
        np.add.at(self.bins, bins, np.stack([np.ones(len(bins)), right.numpy(), confidences.numpy()], axis=1))
        if groups is not None:
            np.add.at(self.groups, groups.numpy(), np.stack([np.ones(len(right)), right.numpy()], axis=1))
        wrong = torch.nonzero(~right).flatten().tolist()
        found = [Mistake(float(confidences[i]), int(rows[i]), int(labels[i]), int(predicted[i])) for i in wrong]
        self.mistakes = worst([*self.mistakes, *found])

    def numbers(self) -> list[float]:
        """All counts in a row, to be added up over ranks."""
        parts = (self.confusion, self.groups, self.bins)
        return [self.loss, self.top5, *(value for part in parts for value in part.ravel().tolist())]

    def replace(self, numbers: Sequence[float]) -> None:
        """Takes what `numbers` of all ranks add up to."""
        self.loss, self.top5 = numbers[:2]
        values, start = np.asarray(numbers), 2
        for part in (self.confusion, self.groups, self.bins):
            part[...] = values[start : start + part.size].reshape(part.shape)
            start += part.size

    def metrics(self, classes: Sequence[str], groups: Sequence[str] = ()) -> dict[str, float]:
        """The measures by name: see docs/vision.md."""
        images = self.confusion.sum()
        found = {
            "eval/loss": float(self.loss / images),
            "eval/accuracy": float(np.trace(self.confusion) / images),
            "eval/top5_accuracy": float(self.top5 / images),
            "eval/calibration_error": calibration_error(self.bins),
        }
        by_class = shares(self.confusion.diagonal(), self.confusion.sum(1))
        found["eval/mean_class_accuracy"] = float(np.nanmean(by_class))
        found["eval/worst_class_accuracy"] = float(np.nanmin(by_class))
        if len(classes) <= MANY_CLASSES:
            found |= named("eval/class_accuracy", classes, by_class)
        if len(groups):
            by_group = shares(self.groups[:, 1], self.groups[:, 0])
            found["eval/worst_group_accuracy"] = float(np.nanmin(by_group))
            found |= named("eval/group_accuracy", groups, by_group)
        return found


def worst(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """The most confident mistakes, in an order that does not depend on who made them."""
    return sorted(mistakes, key=lambda mistake: (-mistake.confidence, mistake.row))[:MISTAKES]


def calibration_error(bins: Counts) -> float:
    """Expected calibration error: the mean over images of |accuracy - confidence| of their bin.

    Args:
        bins: [B, 3], images, those that were right, sum of confidences.
    """
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


def shares(part: Counts, whole: Counts) -> Counts:
    """Part by part of a whole; nan where the whole is nothing."""
    found: Counts = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return found


def named(prefix: str, names: Sequence[str], values: Counts) -> dict[str, float]:
    """By name, without what is not known.  MLflow refuses some characters in names."""
    safe = ["".join(c if c.isalnum() or c in "_-. " else "_" for c in name) for name in names]
    return {f"{prefix}/{name}": float(v) for name, v in zip(safe, values, strict=True) if not np.isnan(v)}
