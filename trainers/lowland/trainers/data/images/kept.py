"""The images that this process opened last: trainings that follow one another mostly see the same."""

from copy import copy
from dataclasses import replace
from typing import Any

import torch

from lowland.trainers.data.images.data import ImageData, open_images
from lowland.trainers.data.images.places import places
from lowland.trainers.data.images.sources import file_states
from lowland.trainers.recipe import ImageDataConfig

_latest: tuple[Any, ImageData] | None = None
"""What was asked for, and what was found."""


def kept_images(config: ImageDataConfig, *, larger_originals: bool = False) -> ImageData:
    """As `open_images`; what was opened last is not read, looked at and decoded again.

    That is: for the same recipe of data, whose files have the same names, sizes and times.  The labels are the
    caller's own, who may change them.

    Raises:
        DataError, RecipeError: as of `open_images`.
    """
    global _latest
    found = places(config)
    states = [file_states(path) for path in (found.path, found.held_out) if path is not None]
    asked = config, larger_originals, torch.get_num_threads(), states
    if _latest is None or _latest[0] != asked:
        _latest = None  # before there are others in memory
        _latest = asked, open_images(config, larger_originals=larger_originals)
    data = _latest[1]
    return replace(data, train=copy(data.train), held_out=copy(data.held_out))
