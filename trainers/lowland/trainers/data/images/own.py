"""Transforms of one's own, torchvision's for example, with random numbers that are a function of the image."""

import random
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lowland.trainers.data.images.chance import Uniforms
from lowland.trainers.errors import RecipeError
from lowland.trainers.imported import imported

Transform = Callable[[Tensor], Tensor]


@cache
def own_transform(target: str) -> Transform:
    """What the function `package.module:function` returns, made once a process.

    Raises:
        RecipeError: it cannot be imported or called, or returns nothing that can be called.
    """
    build = imported(target, "augmentation.transform")
    try:
        made = build()
    except Exception as error:  # whatever the user's function raises
        raise RecipeError(f"{_place(target)}: called without arguments it raises {_said(error)}") from error
    if not callable(made):
        raise RecipeError(f"{_place(target)}: must return a function of an image, not {made!r}")
    transform: Transform = made
    return transform


def transformed(images: Tensor, target: str, numbers: Uniforms) -> Tensor:
    """The images, each by a call of the transform, before which all global generators are seeded.

    These are the process's (Python's, numpy's, torch's on the CPU), so nothing else in it may draw from them.

    Args:
        images: uint8 [B, C, S, S].
        target: names the function that returns the transform.
        numbers: [B, 1], of which the seeds are made.

    Raises:
        RecipeError: the transform fails, or gives anything but uint8 [C, S, S].
    """
    transform = own_transform(target)
    return torch.stack([_of_one(transform, *each, target) for each in zip(images, numbers[:, 0], strict=True)])


def tried(target: str, channels: int, size: int) -> None:
    """Transforms a black image; the process's generators are afterwards as they were.

    Raises:
        RecipeError: as `transformed`.
    """
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        transformed(torch.zeros(1, channels, size, size, dtype=torch.uint8), target, np.zeros((1, 1)))
    random.setstate(kept[0])
    np.random.set_state(kept[1])


def _of_one(transform: Transform, image: Tensor, number: float, target: str) -> Tensor:
    seed = int(number * 2**53)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed, which would seed GPUs as well.
    torch.default_generator.manual_seed(seed)
    try:
        made = transform(image)
    except Exception as error:  # whatever the user's function raises
        raise RecipeError(f"{_place(target)}: of a {_looks(image)} it raises {_said(error)}") from error
    if not isinstance(made, Tensor) or made.shape != image.shape or made.dtype != image.dtype:
        raise RecipeError(
            f"{_place(target)}: of a {_looks(image)} it makes a {_looks(made)}, and must make another of the same "
            "type and shape: leave sizes to data.size, and conversion and normalisation to lowland"
        )
    return made


def _place(target: str) -> str:
    return f"augmentation.transform = {target}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _looks(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return type(value).__name__
