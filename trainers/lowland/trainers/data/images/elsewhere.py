"""Making batches in other processes, which the outside provides: what travels there, and what comes back."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from lowland.trainers.data.images.augment import central_square
from lowland.trainers.data.images.collection import Crop, ImageSet, Numbers
from lowland.trainers.data.images.decode import BadImageError, decode
from lowland.trainers.data.images.encoded import Encoded
from lowland.trainers.data.images.places import places
from lowland.trainers.data.images.sources import Columns, read_rows
from lowland.trainers.recipe import ImageDataConfig
from lowland.trainers.recipe.hub import is_written_as_hub_id
from lowland.trainers.recipe.image_data import EMBEDDED

Arrays = dict[str, npt.NDArray[Any]]
"""What a step is made of, by name."""


class Elsewhere(Protocol):
    """Calls a function of whole numbers in other processes."""

    def __call__(self, build: Callable[[int], Arrays], ahead: int) -> Generator[Arrays]:
        """Yields build(0), build(1), … in this order, without end, some `ahead` of their use.

        Errors of `build` that are lowland's are raised here as they are.  Closing the generator ends the processes.

        Args:
            build: travels as a pickle, and keeps what it opens in the process that calls it.
            ahead: how many are wanted ready.
        """


class ImagesApart(ImageSet):
    """Training images in another process than the one that looked at them: numbered alike, and alike in pixels.

    Made of small arrays, so that it can travel; files are opened where pixels are first asked for, and decoded in the
    thread that asks.

    Args:
        images: as they were opened.
        config: of the recipe.
    """

    def __init__(self, images: ImageSet, config: ImageDataConfig) -> None:
        self.rows, self.labels, self.groups = images.rows, images.labels, images.groups
        self._size, self._fraction, self._pixels = images._size, images._fraction, None
        self._squares, self._config = images.cached, _found_anywhere(config)

    @property
    def cached(self) -> bool:
        """Whether parts are taken of the central square in the network's size, as where that is kept in memory."""
        return self._squares

    def place(self, number: int) -> str:
        """File and row of an image, for messages."""
        return self._images.place(int(self.rows[number]))

    @cached_property
    def _images(self) -> Encoded:
        return read_rows(places(self._config).path, Columns.of(self._config), self._config.shapes).images

    def _decoded(self, rows: Numbers, crops: Sequence[Crop] | None) -> list[Tensor | BadImageError]:
        central: Crop = lambda width, height: central_square(width, height, self._fraction)  # noqa: E731
        crops = crops or [central] * len(rows)
        return [self._decode(row, crop) for row, crop in zip(rows.tolist(), crops, strict=True)]

    def _decode(self, row: int, crop: Crop) -> Tensor | BadImageError:
        try:
            pixels = decode(self._images.read(row), self._config.channels, size=self._size, crop=crop)
        except BadImageError as error:
            return error
        return torch.from_numpy(pixels)


def _found_anywhere(config: ImageDataConfig) -> ImageDataConfig:
    """With the whole path of a folder that elsewhere, where it is not, would be taken for a data set of the hub."""
    if config.on_hub or config.path in EMBEDDED or not is_written_as_hub_id(config.path):
        return config
    return config.model_copy(update={"path": str(Path(config.path).absolute())})


@dataclass(frozen=True)
class Apart:
    """Where steps are made, and of which images."""

    make: Elsewhere
    images: ImagesApart
