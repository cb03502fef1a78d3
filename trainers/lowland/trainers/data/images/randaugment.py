"""RandAugment (Cubuk et al., arXiv 1909.13719): N operations on each image, drawn from fourteen, at magnitude M.

Operations and their strengths are those of torchvision's implementation: 31 magnitudes, signs drawn where an operation
has two directions.  Each works on all images that drew it at once.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lowland.trainers.data.images.chance import Uniforms

MAGNITUDES = 31
_GREY = (0.2989, 0.587, 0.114)

Operation = Callable[[Tensor, Tensor], Tensor]
"""Images uint8 [B, C, H, W] and strengths float32 [B]; returns images of the same shape and type."""


def numbers_for(operations: int) -> int:
    """Numbers that an image takes: an operation and a sign for each."""
    return 2 * operations


def randaugment(images: Tensor, numbers: Uniforms, *, operations: int, magnitude: int) -> Tensor:
    """The images after `operations` operations each.

    Args:
        images: uint8 [B, C, H, W].
        numbers: [B, 2 * operations].
        operations: N, >= 1.
        magnitude: M, in [0, 30].
    """
    images = images.clone()
    for turn in range(operations):
        chosen = np.floor(numbers[:, 2 * turn] * len(OPERATIONS)).astype(np.int64)
        signs = np.where(numbers[:, 2 * turn + 1] < 0.5, 1.0, -1.0)
        for index, name in enumerate(OPERATIONS):
            where = np.flatnonzero(chosen == index)
            if len(where):
                at = torch.from_numpy(where)
                images[at] = apply(name, images[at], magnitude, signs[where])
    return images


def apply(name: str, images: Tensor, magnitude: int, signs: npt.NDArray[np.float64]) -> Tensor:
    """One operation on all images, at a magnitude in [0, 30] and in the direction of the signs [B]."""
    strength, signed, operation = OPERATIONS[name]
    level = strength(magnitude / (MAGNITUDES - 1), images.shape[-1], images.shape[-2])
    levels = torch.from_numpy(level * (signs if signed else np.ones_like(signs))).float()
    return operation(images, levels)


def blend(images: Tensor, degenerate: Tensor, factors: Tensor) -> Tensor:
    """factor times the images and 1 - factor times the degenerate ones, cut to bytes."""
    weight = factors.view(-1, 1, 1, 1)
    return _bytes(images * weight + degenerate * (1 - weight))


def brightness(images: Tensor, levels: Tensor) -> Tensor:
    """Towards black (< 0) or away from it."""
    return blend(images.float(), torch.zeros_like(images, dtype=torch.float32), 1 + levels)


def contrast(images: Tensor, levels: Tensor) -> Tensor:
    """Towards the mean brightness or away from it."""
    mean = _grey(images).mean(dim=(-3, -2, -1), keepdim=True)
    return blend(images.float(), mean, 1 + levels)


def colour(images: Tensor, levels: Tensor) -> Tensor:
    """Towards grey or away from it."""
    return blend(images.float(), _grey(images), 1 + levels)


def sharpness(images: Tensor, levels: Tensor) -> Tensor:
    """Towards a smoothed image or away from it; the edge's pixels stay."""
    height, width = images.shape[-2:]
    values = images.float()
    if height > 2 and width > 2:
        channels = images.shape[1]
        kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
        inner = functional.conv2d(values, kernel.expand(channels, 1, 3, 3), groups=channels).round_()
        smooth = values.clone()
        smooth[..., 1:-1, 1:-1] = inner
        return blend(values, smooth, 1 + levels)
    return images


def posterize(images: Tensor, levels: Tensor) -> Tensor:
    """Keeps so many upper bits."""
    masks = 256 - 2 ** (8 - levels.round().long())
    return (images.long() & masks.view(-1, 1, 1, 1)).to(torch.uint8)


def solarize(images: Tensor, levels: Tensor) -> Tensor:
    """Inverts values that reach a threshold."""
    return torch.where(images.float() >= levels.view(-1, 1, 1, 1), 255 - images, images)


def autocontrast(images: Tensor, levels: Tensor) -> Tensor:
    """Stretches each channel over all bytes."""
    values = images.float()
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    flat = low == high
    low, high = low.masked_fill(flat, 0), high.masked_fill(flat, 255)
    return _bytes((values - low) * (255 / (high - low)))


def equalize(images: Tensor, levels: Tensor) -> Tensor:
    """Makes all values of a channel about equally frequent."""
    batch, channels = images.shape[:2]
    flat = images.reshape(batch * channels, -1).long()
    histogram = torch.zeros(len(flat), 256, dtype=torch.long)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    last = histogram.gather(1, flat.amax(1, keepdim=True))
    step = (histogram.sum(1, keepdim=True) - last) // 255
    below = histogram.cumsum(1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    table = torch.where(step == 0, torch.arange(256), table)
    return table.gather(1, flat).to(torch.uint8).view_as(images)


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Images at the places that matrices [B, 2, 3] give, in pixels from the centre; black outside, nearest pixel."""
    batch, _, height, width = images.shape
    ys, xs = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    places = torch.stack([xs, ys, torch.ones_like(xs)], dim=-1).view(1, -1, 3) @ matrices.transpose(1, 2)
    grid = places / torch.tensor([width / 2, height / 2])
    grid = grid.view(batch, height, width, 2)
    return functional.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def shear_x(images: Tensor, levels: Tensor) -> Tensor:
    """Rows moved by `level` pixels for each row from the upper edge."""
    return affine(images, _matrices(levels, x=(1.0, levels, levels * (images.shape[-2] - 1) / 2)))


def shear_y(images: Tensor, levels: Tensor) -> Tensor:
    """Columns moved by `level` pixels for each column from the left edge."""
    return affine(images, _matrices(levels, y=(levels, 1.0, levels * (images.shape[-1] - 1) / 2)))


def translate_x(images: Tensor, levels: Tensor) -> Tensor:
    """Moved right by whole pixels."""
    return affine(images, _matrices(levels, x=(1.0, 0.0, -levels.trunc())))


def translate_y(images: Tensor, levels: Tensor) -> Tensor:
    """Moved down by whole pixels."""
    return affine(images, _matrices(levels, y=(0.0, 1.0, -levels.trunc())))


def rotate(images: Tensor, levels: Tensor) -> Tensor:
    """Turned counter-clockwise by degrees around the centre."""
    angles = levels * (math.pi / 180)
    return affine(images, _matrices(levels, x=(angles.cos(), -angles.sin(), 0.0), y=(angles.sin(), angles.cos(), 0.0)))


def _matrices(
    levels: Tensor,
    x: tuple[Tensor | float, Tensor | float, Tensor | float] = (1.0, 0.0, 0.0),
    y: tuple[Tensor | float, Tensor | float, Tensor | float] = (0.0, 1.0, 0.0),
) -> Tensor:
    """[B, 2, 3]: where in the image a place of the result comes from."""
    matrices = torch.empty(len(levels), 2, 3)
    for row, entries in enumerate((x, y)):
        for column, entry in enumerate(entries):
            matrices[:, row, column] = entry
    return matrices


def _grey(images: Tensor) -> Tensor:
    """Brightness [B, 1, H, W], rounded down."""
    if images.shape[1] == 1:
        return images.float()
    weights = torch.tensor(_GREY).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).floor_()


def _bytes(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)


def _identity(images: Tensor, levels: Tensor) -> Tensor:
    return images


def _linear(greatest: float) -> Callable[[float, int, int], float]:
    return lambda part, width, height: greatest * part


OPERATIONS: dict[str, tuple[Callable[[float, int, int], float], bool, Operation]] = {
    "identity": (_linear(0.0), False, _identity),
    "shear_x": (_linear(0.3), True, shear_x),
    "shear_y": (_linear(0.3), True, shear_y),
    "translate_x": (lambda part, width, height: 150 / 331 * width * part, True, translate_x),
    "translate_y": (lambda part, width, height: 150 / 331 * height * part, True, translate_y),
    "rotate": (_linear(30.0), True, rotate),
    "brightness": (_linear(0.9), True, brightness),
    "colour": (_linear(0.9), True, colour),
    "contrast": (_linear(0.9), True, contrast),
    "sharpness": (_linear(0.9), True, sharpness),
    "posterize": (
        lambda part, width, height: 8 - round(part * (MAGNITUDES - 1) / ((MAGNITUDES - 1) / 4)),
        False,
        posterize,
    ),
    "solarize": (lambda part, width, height: 255 * (1 - part), False, solarize),
    "autocontrast": (_linear(0.0), False, autocontrast),
    "equalize": (_linear(0.0), False, equalize),
}
"""By name: strength by the part of the greatest magnitude, width and height; whether it has a sign; what it does."""
