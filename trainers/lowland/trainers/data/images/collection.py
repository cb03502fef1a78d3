"""Images that were looked at: their classes and groups by number, and their pixels by row."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowland.trainers.data.images.augment import central_square
from lowland.trainers.data.images.decode import BadImageError, Box, Header, decode, expected_kind, header
from lowland.trainers.data.images.findings import Findings
from lowland.trainers.data.images.labels import Names
from lowland.trainers.data.images.sources import Rows, Value
from lowland.trainers.errors import DataError
from lowland.trainers.recipe import ImageDataConfig
from lowland.trainers.recipe.image_data import EMBEDDED

Numbers = npt.NDArray[np.int64]
Crop = Callable[[int, int], Box]

AUTO_CACHE = 2 << 30
"""Bytes of pixels that `cache: auto` keeps in memory."""
_AT_A_TIME = 64
T = TypeVar("T")


class Collection:
    """The rows of one path, looked at: which are of use, and what is wrong with the others.

    Args:
        path: what the recipe calls it.
        rows: as they are stored.
        classes: of the training.
        groups: of the training; None without groups.
        config: of the recipe.
        pool: what decodes.
    """

    def __init__(
        self,
        path: str,
        rows: Rows,
        classes: Names,
        groups: Names | None,
        config: ImageDataConfig,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.path, self.findings = path, Findings(path, len(rows))
        self._rows, self._config, self._pool = rows, config, pool
        self.labels = self._numbers(rows.labels, classes)
        self.groups = self._groups(groups)
        headers = self._headers()
        self._modes(headers)
        self.usable = np.array([row for row in range(len(rows)) if row not in self.findings.bad], dtype=np.int64)
        kept = [headers[row] for row in self.usable]
        self.sides = {(found.width, found.height) for found in kept if found is not None}
        """Every size of image there is."""
        self._sides = [(found.width, found.height) if found is not None else (0, 0) for found in headers]
        if config.bad_rows == "error":
            self.findings.require_none()

    def place(self, row: int) -> str:
        """File and row, for messages."""
        return self._rows.images.place(row)

    def count_resized(self, size: int) -> None:
        """Notes how many images are of another size than the network sees."""
        self.findings.resized = sum(self._sides[row] != (size, size) for row in self.usable)

    def decode(self, rows: Iterable[int], size: int, crops: Iterable[Crop]) -> list[Tensor | BadImageError]:
        """Pixels uint8 [C, size, size] of rows, each of the part that its crop says; or what is wrong."""
        return self._each(self._decode, [(int(row), size, crop) for row, crop in zip(rows, crops, strict=True)])

    def _decode(self, work: tuple[int, int, Crop]) -> Tensor | BadImageError:
        row, size, crop = work
        try:
            data = self._rows.images.read(row)
            return torch.from_numpy(decode(data, self._config.channels, size=size, crop=crop))
        except BadImageError as error:
            return error

    def _numbers(self, values: Sequence[Value], names: Names) -> Numbers:
        numbers = np.full(len(values), -1, dtype=np.int64)
        for row, value in enumerate(values):
            found = names.number(value) if value is not None else None
            if value is None:
                self.findings.mark(row, "missing label", self.place(row), "")
            elif found is None:
                reason = "label out of range" if isinstance(value, int) else "unknown label"
                self.findings.mark(row, reason, self.place(row), f"{value!r}; there are {len(names)} classes")
            else:
                numbers[row] = found
        return numbers

    def _groups(self, names: Names | None) -> Numbers | None:
        if names is None or self._rows.groups is None:
            return None
        numbers = np.full(len(self._rows), -1, dtype=np.int64)
        for row, value in enumerate(self._rows.groups):
            found = names.number(value) if value is not None else None
            if found is None:
                self.findings.mark(row, "missing group", self.place(row), "")
            else:
                numbers[row] = found
        return numbers

    def _headers(self) -> list[Header | None]:
        found = list[Header | None]()
        for row, looked in enumerate(self._each(self._header, range(len(self._rows)))):
            if isinstance(looked, BadImageError):
                self.findings.mark(row, looked.reason, self.place(row), str(looked))
            elif min(looked.width, looked.height) < self._config.min_side:
                detail = f"{looked.width} x {looked.height}, data.min_side is {self._config.min_side}"
                self.findings.mark(row, "image too small", self.place(row), detail)
            found.append(None if isinstance(looked, BadImageError) else looked)
        return found

    def _header(self, row: int) -> Header | BadImageError:
        try:
            with self._rows.images.opened(row) as data:
                return header(data)
        except BadImageError as error:
            return error

    def _modes(self, headers: Sequence[Header | None]) -> None:
        expected = expected_kind(self._config.channels)
        if self.path in EMBEDDED:
            return  # grey or coloured by themselves, as is known
        for row, found in enumerate(headers):
            if found is None or row in self.findings.bad or found.kind == expected:
                continue
            if self._config.other_modes == "convert":
                self.findings.converted[found.kind] += 1
            else:
                detail = f"{found.kind}, wanted {expected}; data.other_modes: convert takes it"
                self.findings.mark(row, "colour mode", self.place(row), detail)
        if self._config.other_modes == "error" and any(
            reason == "colour mode" for reason, _ in self.findings.bad.values()
        ):
            self.findings.require_none()

    def _each(self, function: Callable[..., T], items: Sequence[object]) -> list[T]:
        """What a function makes of items, in their order, by all threads; a handful for each call, since calls cost."""
        groups = [items[start : start + _AT_A_TIME] for start in range(0, len(items), _AT_A_TIME)]
        if len(groups) == 1:  # a batch: one image for each call
            return list(self._pool.map(function, items))
        return list(chain.from_iterable(self._pool.map(lambda group: [function(item) for item in group], groups)))


class ImageSet:
    """Some images of a collection, numbered from 0: those to train on, or those to evaluate on.

    Args:
        collection: where they are from.
        rows: theirs, in the order of their numbers.
        size: side of the square that the network sees.
        fraction: side of the central square that `pixels` shows, as a part of the shorter side.
        cached: whether pixels are decoded now and kept.
    """

    def __init__(self, collection: Collection, rows: Numbers, *, size: int, fraction: float, cached: bool) -> None:
        self._collection, self._size, self._fraction = collection, size, fraction
        self.rows = rows
        self._pixels: Tensor | None = None
        if cached:
            self._cache()
        self.labels = collection.labels[self.rows]
        self.groups = collection.groups[self.rows] if collection.groups is not None else None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cached(self) -> bool:
        """Whether pixels are in memory."""
        return self._pixels is not None

    def place(self, number: int) -> str:
        """File and row of an image, for messages."""
        return self._collection.place(int(self.rows[number]))

    def pixels(self, numbers: Numbers, crops: Sequence[Crop] | None = None) -> Tensor:
        """Bytes of images: uint8 [B, C, size, size], a copy.

        Args:
            numbers: which images.
            crops: the part of each that is taken, where they are not kept in memory; None is the central square.

        Raises:
            DataError: an image turns out to be corrupt.
        """
        if self._pixels is not None and crops is None:
            return self._pixels[torch.from_numpy(numbers)]
        found = self._decoded(self.rows[numbers], crops)
        for number, pixels in zip(numbers, found, strict=True):
            if isinstance(pixels, BadImageError):
                raise DataError(
                    f"{self.place(number)}: {pixels.reason} ({pixels}); correct or remove it, or set data.cache: "
                    "always, which decodes every image at the start"
                )
        return torch.stack([pixels for pixels in found if isinstance(pixels, Tensor)])

    def _decoded(self, rows: Numbers, crops: Sequence[Crop] | None) -> list[Tensor | BadImageError]:
        central: Crop = lambda width, height: central_square(width, height, self._fraction)  # noqa: E731
        return self._collection.decode(rows, self._size, crops or [central] * len(rows))

    def _cache(self) -> None:
        """Decodes all images, and leaves out what turns out to be corrupt, if the recipe says so."""
        kept, pixels = list[int](), list[Tensor]()
        for row, found in zip(self.rows.tolist(), self._decoded(self.rows, None), strict=True):
            if isinstance(found, BadImageError):
                self._collection.findings.mark(row, found.reason, self._collection.place(row), str(found))
            else:
                kept.append(row)
                pixels.append(found)
        self.rows = np.array(kept, dtype=np.int64)
        self._pixels = torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8)
