"""Pictures of an evaluation, as PNG files."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lowland.trainers.tasks.image_metrics import Counts, Mistake, shares

NAMED_CLASSES = 30
"""Classes up to which the axes name each."""
WRITTEN_CLASSES = 15
"""Classes up to which the numbers are written into the matrix."""
COLUMNS = 4
_DOTS = 110


def confusion_picture(confusion: Counts, classes: Sequence[str]) -> bytes:
    """A matrix of what was taken for what: a row for each class, its colours the parts of the class's images.

    Args:
        confusion: [K, K], images of a class (row) that were taken for a class (column).
        classes: K names.
    """
    count = len(classes)
    figure = Figure(figsize=(5 + min(count, NAMED_CLASSES) * 0.2, 4.5 + min(count, NAMED_CLASSES) * 0.2))
    axes = figure.subplots()
    parts = np.nan_to_num(confusion / confusion.sum(1, keepdims=True).clip(min=1))
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="part of the class's images", fraction=0.046, pad=0.04)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    right = shares(confusion.diagonal(), confusion.sum(1))
    axes.set_title(
        f"{np.trace(confusion) / confusion.sum():.2%} of {confusion.sum():.0f} right; {_worst(right, classes)}"
    )
    if count <= NAMED_CLASSES:
        axes.set_xticks(range(count), classes, rotation=90)
        axes.set_yticks(range(count), classes)
    if count <= WRITTEN_CLASSES:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if parts[row, column] > 0.5 else "black"
            axes.text(column, row, f"{confusion[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


def mistakes_picture(
    images: Tensor, mistakes: Sequence[Mistake], classes: Sequence[str], places: Sequence[str]
) -> bytes:
    """The images that were mistaken with the most confidence, each with its class and what it was taken for.

    Args:
        images: uint8 [N, C, S, S], N >= 1.
        mistakes: N.
        classes: names.
        places: file and row of each, of which the end is shown.
    """
    rows = -(-len(mistakes) // COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 2.9 * rows))
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, mistake, place in zip(grid, images, mistakes, places, strict=False):
        pixels = image.permute(1, 2, 0)
        axes.imshow(pixels.expand(-1, -1, 3).to(torch.uint8).numpy(), interpolation="nearest")
        taken = f"{classes[mistake.label]}, taken for {classes[mistake.predicted]}\n({mistake.confidence:.1%})"
        axes.set_title(f"{taken} {place[-24:]}", fontsize=8)
    return _png(figure)


def _worst(right: Counts, classes: Sequence[str]) -> str:
    worst = int(np.nanargmin(right))
    return f"worst class {classes[worst]}, {right[worst]:.1%}"


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DOTS, bbox_inches="tight")
    return stream.getvalue()
