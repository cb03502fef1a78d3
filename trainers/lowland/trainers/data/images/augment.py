"""Crops, flips and erasing on batches of images: pure functions of pixels and of numbers in [0, 1)."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lowland.trainers.data.images.chance import Uniforms
from lowland.trainers.data.images.decode import Box

Boxes = npt.NDArray[np.float64]
"""Left, upper, right, lower, [B, 4]."""
ATTEMPTS = 4
"""Shapes that are drawn until one fits into an image."""
CROP_NUMBERS = 2 * ATTEMPTS + 2
"""Numbers that a random part of an image takes."""


def padded_crop(
    images: Tensor, shifts: Uniforms | None, flips: npt.NDArray[np.bool_], *, padding: int, mode: str
) -> Tensor:
    """Windows of the padded images at their own size, mirrored left to right where asked.

    Args:
        images: uint8 [B, C, H, W]; mirrored in place if there is no padding.
        shifts: [B, 2], where the window begins, down and right, as a part of the 2 padding + 1 places there are;
            None is the middle.
        flips: [B].
        padding: pixels on each side.
        mode: `zeros`, or `reflect`, which leaves out the edge's own pixels and wants padding < H, W.
    """
    # Few calls, each without Python's lock: the thread that trains waits for it after every kernel that it starts.
    if padding:
        height, width = images.shape[-2:]
        # torch reflects floating-point numbers alone; a byte is exact in one.
        padded = (
            functional.pad(images.float(), [padding] * 4, mode="reflect").to(torch.uint8)
            if mode == "reflect"
            else functional.pad(images, [padding] * 4)
        )
        starts = np.full((len(images), 2), padding)
        if shifts is not None:
            starts = np.floor(shifts * (2 * padding + 1)).astype(np.int64)
        places = zip(padded.unbind(), starts.tolist(), strict=True)
        images = torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in places])
    mirrored = torch.from_numpy(np.flatnonzero(flips))
    return images.index_copy_(0, mirrored, images.index_select(0, mirrored).flip(-1))


def part_of_image(
    numbers: npt.NDArray[np.float64],
    width: float,
    height: float,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """A random part of an image (Szegedy et al., 2015): its area uniform, its shape uniform on a log scale.

    The first of `ATTEMPTS` shapes that fits into the image is taken, else the largest central part of a shape
    within the range.

    Args:
        numbers: `CROP_NUMBERS` in [0, 1).
        width: of the image, in pixels; likewise `height`.
        height: see there.
        area: least and greatest part of its area.
        ratio: least and greatest width over height.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        size = width * height * (area[0] + numbers[2 * attempt] * (area[1] - area[0]))
        shape = math.exp(low + numbers[2 * attempt + 1] * (high - low))
        w, h = math.sqrt(size * shape), math.sqrt(size / shape)
        if w <= width and h <= height:
            left, upper = numbers[-2] * (width - w), numbers[-1] * (height - h)
            return (left, upper, left + w, upper + h)
    shape = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, height * shape), min(height, width / shape)
    return ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)


def central_square(width: float, height: float, fraction: float) -> Box:
    """The square in the middle whose side is a part of the shorter side."""
    side = min(width, height) * fraction
    return ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)


def resized_parts(images: Tensor, boxes: Boxes) -> Tensor:
    """Parts of the images, each resized to the images' own size (bilinear between pixels' centres).

    Args:
        images: uint8 [B, C, H, W].
        boxes: in pixels, within the image.
    """
    height, width = images.shape[-2:]
    left, upper, right, lower = (torch.from_numpy(np.ascontiguousarray(side)) for side in boxes.T)
    # From places in the result to places in the image, both from -1 to 1 between the outer edges.
    theta = torch.zeros(len(images), 2, 3, dtype=torch.float64)
    theta[:, 0, 0], theta[:, 0, 2] = (right - left) / width, (left + right) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = (lower - upper) / height, (upper + lower) / height - 1
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False).float()
    parts = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return parts.round_().clamp_(0, 255).to(torch.uint8)


ERASING_NUMBERS = CROP_NUMBERS + 1
"""Numbers that the erasing of an image takes."""


def erase(
    images: Tensor,
    numbers: Uniforms,
    *,
    probability: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
    colour: Tensor,
) -> Tensor:
    """Fills a random rectangle of some images with a colour, in place; returns them.

    Args:
        images: uint8 [B, C, H, W].
        numbers: [B, ERASING_NUMBERS].
        probability: part of the images.
        area: least and greatest part of the image's area.
        ratio: least and greatest width over height.
        colour: uint8 [C].
    """
    height, width = images.shape[-2:]
    for index in np.flatnonzero(numbers[:, 0] < probability):
        box = part_of_image(numbers[index, 1:], width, height, area=area, ratio=ratio)
        left, upper, right, lower = (round(side) for side in box)
        images[index, :, upper:lower, left:right] = colour[:, None, None]
    return images
