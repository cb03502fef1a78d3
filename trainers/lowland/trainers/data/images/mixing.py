"""MixUp and CutMix: which part of an example is another one's.

The partner of example i of the endless stream is its neighbour i xor 1, so that mixing is the same however the stream
is cut into batches and ranks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv
from torch import Tensor

from lowland.trainers.data.images.chance import Uniforms

MIXING_NUMBERS = 4
"""Numbers that the mixing of an example takes."""


@dataclass(frozen=True)
class Mixture:
    """What examples keep of themselves, [B] each."""

    pixels: npt.NDArray[np.float64]
    """Weight of the example's own pixels where two images are blended; 1 for CutMix, which pastes."""
    labels: npt.NDArray[np.float64]
    """Weight of the example's own label."""
    boxes: npt.NDArray[np.int64]
    """Left, upper, right, lower of what is pasted, [B, 4]; empty boxes for MixUp."""


def mixture(numbers: Uniforms, *, mixup: float, cutmix: float, height: int, width: int) -> Mixture:
    """The mixing of examples, at least one alpha > 0; with both, half of the examples get either.

    MixUp (Zhang et al., arXiv 1710.09412): lambda ~ Beta(alpha, alpha), x = lambda x_i + (1 - lambda) x_j.
    CutMix (Yun et al., arXiv 1905.04899): a box of the part 1 - lambda of the area around a uniform place, cut at
    the image's edges; lambda becomes the part that is left.

    Args:
        numbers: [B, MIXING_NUMBERS].
        mixup: alpha, >= 0.
        cutmix: alpha, >= 0.
        height: of the images.
        width: of the images.
    """
    pastes = (numbers[:, 0] < 0.5) if mixup and cutmix else np.full(len(numbers), cutmix > 0)
    alphas = np.where(pastes, cutmix or 1.0, mixup or 1.0)
    own = betaincinv(alphas, alphas, numbers[:, 1])
    boxes = _boxes(numbers[:, 2:], np.sqrt(1 - own), height, width)
    boxes[~pastes] = 0
    pasted = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (height * width)
    return Mixture(np.where(pastes, 1.0, own), np.where(pastes, 1 - pasted, own), boxes)


def _boxes(places: Uniforms, side: Uniforms, height: int, width: int) -> npt.NDArray[np.int64]:
    x, y = places[:, 0] * width, places[:, 1] * height
    edges = [x - side * width / 2, y - side * height / 2, x + side * width / 2, y + side * height / 2]
    boxes = np.rint(np.stack(edges, axis=1)).astype(np.int64)
    return np.clip(boxes, 0, np.array([width, height, width, height]))


def paste(images: Tensor, others: Tensor, boxes: npt.NDArray[np.int64]) -> Tensor:
    """The images [B, C, H, W] with each box filled from the other image at the same place, in place."""
    into, of = images.numpy(), others.numpy()
    for index, (left, upper, right, lower) in enumerate(boxes.tolist()):
        into[index, :, upper:lower, left:right] = of[index, :, upper:lower, left:right]
    return images
