"""The images of a training, opened: what a recipe's `data` section names."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowland.trainers.data.images.collection import AUTO_CACHE, Collection, ImageSet, Numbers
from lowland.trainers.data.images.findings import Findings
from lowland.trainers.data.images.labels import Names, class_names, group_names
from lowland.trainers.data.images.long_tail import long_tail
from lowland.trainers.data.images.sources import Rows, read_sources
from lowland.trainers.data.order import Order
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.recipe import ImageDataConfig

SPLIT_SEED = 0
"""Of the choice of held-out images: the same for trainings of any seed, so that they can be compared."""
MEASURED = 4096
"""Training images at most whose colours are measured, where they are not all in memory."""


@dataclass(frozen=True)
class ImageData:
    """Images to train on and to evaluate on."""

    train: ImageSet
    held_out: ImageSet
    classes: Names
    groups: Names | None
    size: int
    """Side of the square that the network sees."""
    mean: tuple[float, ...]
    """Of each channel, on the scale from 0 to 1."""
    std: tuple[float, ...]
    findings: tuple[Findings, ...]
    """Of `path`, and of `held_out_path` if there is one."""
    empty_classes: tuple[str, ...]
    """Classes without a training image."""

    def metrics(self) -> dict[str, float]:
        """Counts by name."""
        found = {f"data/{name}": float(len(images)) for name, images in self._sets()}
        found["data/empty_classes"] = float(len(self.empty_classes))
        for prefix, findings in zip(("data/path", "data/held_out_path"), self.findings, strict=False):
            found |= findings.metrics(prefix)
        return found

    def lines(self) -> list[str]:
        """What the user is told."""
        told = [line for findings in self.findings for line in findings.lines()]
        if self.empty_classes:
            told.append(f"{self.findings[0].path}: no training image of {_listed(self.empty_classes)}")
        return told

    def bad_rows(self) -> list[str]:
        """Every row that was left out, with its file and what is wrong."""
        return [text for findings in self.findings for text in findings.bad_rows()]

    def _sets(self) -> tuple[tuple[str, ImageSet], tuple[str, ImageSet]]:
        return ("train_images", self.train), ("held_out_images", self.held_out)


def open_images(config: ImageDataConfig, *, larger_originals: bool = False) -> ImageData:
    """Reads, looks at and, if they are to be kept in memory, decodes the images.

    Args:
        config: of the recipe.
        larger_originals: whether training takes parts of images and enlarges them, which `cache: auto` leaves to the
            originals if they are larger than what the network sees.

    Raises:
        DataError: images, labels or classes are not as they must be; the message names rows and files.
        RecipeError: `size` is needed and not given.
    """
    rows, other = read_sources(config)
    classes = class_names(rows.labels, rows.names, config.classes, config.path)
    other = _by_name(other, classes, config) if other is not None else None
    groups = _groups(config, rows, other)
    pool = ThreadPoolExecutor(config.threads or torch.get_num_threads(), thread_name_prefix="lowland-decode")
    main = Collection(config.path, rows, classes, groups, config, pool)
    apart = Collection(config.held_out_path or config.path, other, classes, groups, config, pool) if other else None
    train_rows, held_out_rows = _split(main, config) if apart is None else (main.usable, apart.usable)
    if (tail := config.long_tail) is not None:
        train_rows = train_rows[long_tail(main.labels[train_rows], len(classes), tail.ratio, tail.seed)]
    collections = [main, *([apart] if apart is not None else [])]
    size = _size(config, collections)
    for collection in collections:
        collection.count_resized(size)
    cached = _cached(config, len(train_rows) + len(held_out_rows), size, collections, larger_originals)
    train = ImageSet(main, train_rows, size=size, fraction=1.0, cached=cached)
    held_out = ImageSet(apart or main, held_out_rows, size=size, fraction=config.evaluation_crop, cached=cached)
    if config.bad_rows == "error":
        for collection in collections:
            collection.findings.require_none()
    empty = _empty_classes(train, classes, config)
    for name, images in (("train", train), ("held out", held_out)):
        if len(images) == 0:
            raise DataError(f"{config.path}: no image to {name} is left; give more images, or change data.held_out")
    mean, std = _colours(train, config)
    findings = tuple(collection.findings for collection in collections)
    return ImageData(train, held_out, classes, groups, size, mean, std, findings, empty)


def _by_name(other: Rows, classes: Names, config: ImageDataConfig) -> Rows:
    """Held-out rows whose labels are numbers of other named classes, with the names instead."""
    if other.names is None or other.names == classes.names:
        return other
    names = other.names
    if missing := ", ".join(sorted(set(names) - set(classes.names))):
        raise DataError(
            f"{config.held_out_path}: classes that {config.path} does not have: {missing}; name the classes alike"
        )
    labels = [names[v] if isinstance(v, int) and 0 <= v < len(names) else v for v in other.labels]
    return Rows(labels, other.groups, other.images, other.names)


def _groups(config: ImageDataConfig, rows: Rows, other: Rows | None) -> Names | None:
    if config.group_column is None:
        return None
    if rows.groups is None or (other is not None and other.groups is None):
        raise DataError(f"data.group_column = {config.group_column}: only Parquet files have columns; remove it")
    return group_names([*rows.groups, *(other.groups if other is not None and other.groups else ())], config.path)


def _split(collection: Collection, config: ImageDataConfig) -> tuple[Numbers, Numbers]:
    """Rows to train on and rows held out: a random part, in the order of the rows."""
    count = len(collection.usable)
    held_out = min(count, max(1, round(config.held_out * count)))
    if count == 0:
        raise DataError(f"{config.path}: no image that can be used")
    drawn = np.zeros(count, dtype=bool)
    drawn[Order(count, SPLIT_SEED).examples(0, held_out)] = True
    return collection.usable[~drawn], collection.usable[drawn]


def _size(config: ImageDataConfig, collections: list[Collection]) -> int:
    if config.size is not None:
        return config.size
    return square_side({side for collection in collections for side in collection.sides})


def square_side(sides: set[tuple[int, int]]) -> int:
    """The side of images that are all squares of one size, of which `sides` are the widths and heights.

    Raises:
        RecipeError: they are not.
    """
    width, height = next(iter(sides), (0, 1))
    if len(sides) == 1 and width == height:
        return width
    shown = ", ".join(f"{width} x {height}" for width, height in sorted(sides)[:3])
    raise RecipeError(f"data.size: give the side of the square that the network sees; the images have {shown} pixels")


def _cached(config: ImageDataConfig, count: int, size: int, collections: list[Collection], larger: bool) -> bool:
    if config.cache != "auto":
        return config.cache == "always"
    original = all(collection.sides <= {(size, size)} for collection in collections)
    return count * config.channels * size * size <= AUTO_CACHE and (original or not larger)


def _empty_classes(train: ImageSet, classes: Names, config: ImageDataConfig) -> tuple[str, ...]:
    counts = np.bincount(train.labels, minlength=len(classes))
    empty = tuple(classes.names[i] for i in np.flatnonzero(counts == 0))
    if empty and config.bad_rows == "error":
        raise DataError(
            f"{config.path}: no training image of {_listed(empty)}; correct data.classes or the labels, or accept it "
            "with data.bad_rows: skip"
        )
    return empty


def _listed(classes: tuple[str, ...]) -> str:
    more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
    return f"{'class' if len(classes) == 1 else 'classes'} {', '.join(classes[:5])}{more}"


def _colours(train: ImageSet, config: ImageDataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel: as given, or of all pixels of the training images (of some if not cached)."""
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    count = len(train) if train.cached else min(MEASURED, len(train))
    numbers = np.arange(count) if train.cached else Order(len(train), SPLIT_SEED).examples(0, count)
    histogram = torch.zeros(config.channels, 256, dtype=torch.float64)
    for start in range(0, count, 1024):
        histogram += _histogram(train.pixels(numbers[start : start + 1024]))
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = histogram / histogram.sum(1, keepdim=True)
    mean = shares @ values
    std = [math.sqrt(float(share @ (values - m).square())) for share, m in zip(shares, mean, strict=True)]
    # Images of one colour have nothing to be scaled.
    return config.mean or tuple(mean.tolist()), config.std or tuple(s if s > 0 else 1.0 for s in std)


def _histogram(images: Tensor) -> Tensor:
    """How often each byte is in each channel: float64 [C, 256]."""
    return torch.stack([torch.bincount(images[:, c].flatten(), minlength=256).double() for c in range(images.shape[1])])
