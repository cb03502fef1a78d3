"""Batches of images for training and evaluation, the same global batches at every world size."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lowland.trainers.data.images import augment
from lowland.trainers.data.images.chance import Purpose, Uniforms, uniforms
from lowland.trainers.data.images.collection import Crop, ImageSet, Numbers
from lowland.trainers.data.images.elsewhere import Apart, Arrays
from lowland.trainers.data.images.halves import VIEWS, Halves, own_parts, partners
from lowland.trainers.data.images.mixing import MIXING_NUMBERS, mixture, paste
from lowland.trainers.data.images.own import transformed
from lowland.trainers.data.images.randaugment import numbers_for, randaugment
from lowland.trainers.data.images.sampling import SampledOrder, Sampling
from lowland.trainers.data.order import HalvesOrder, Order
from lowland.trainers.data.prefetch import built_ahead, prefetched
from lowland.trainers.recipe import AugmentationConfig

HELD_OUT_SEED = 0
"""Of the choice of images to evaluate on, where not all are: the same for trainings of any seed."""


@dataclass(frozen=True)
class ImageBatch:
    """Images for one forward pass: CPU tensors."""

    images: Tensor
    """uint8 [B, C, S, S]."""
    labels: Tensor
    """int64 [B]."""
    rows: Tensor
    """int64 [B]: numbers of the images in their set."""
    groups: Tensor | None
    """int64 [B]."""
    other_labels: Tensor | None = None
    """int64 [B]: labels of what is mixed in; None without mixing, as are the next three."""
    label_weights: Tensor | None = None
    """float32 [B]: weight of `labels`; what is left is that of `other_labels`."""
    others: Tensor | None = None
    """uint8 [B, C, S, S]: images to blend with, for MixUp."""
    pixel_weights: Tensor | None = None
    """float32 [B]: weight of `images` against `others`, or against those of `partners`."""
    partners: Tensor | None = None
    """int64 [B]: which image of this batch each is blended with; for training on halves, as the next."""
    views: Tensor | None = None
    """uint8 [B, VIEWS, C, S, S]: the same images under light augmentation alone."""


@dataclass(frozen=True)
class ImageStep:
    """One rank's part of a global batch."""

    micro_batches: list[ImageBatch]
    first_example: int
    """Place of the global batch in the stream of examples."""
    rows: Numbers
    """Of this rank, micro-batch after micro-batch."""


class TrainImages:
    """The endless stream of a rank's steps; cut as `TrainBatches` cuts text.

    What is done to an example depends on seed, epoch and image alone, and with mixing on its neighbour in the stream.

    Args:
        images: to train on.
        config: what is done to them.
        colour: uint8 [C], with which erasing fills.
        seed: of the training.
        micro_batch: images of one forward pass.
        accumulation: micro-batches of a rank and step.
        rank: of this process.
        world_size: ranks.
        start_example: place in the stream to begin at.
        prefetch: steps made ready ahead, each by a thread of its own.
        sampling: how often each image comes; None is once an epoch.
        halves: take examples from two halves in turn; batches have further views and partners then.
        pinned: whether batches lie in memory that a GPU reads by itself, so that copying them holds nobody up.
        apart: other processes in which steps are made; None makes them here.
    """

    def __init__(
        self,
        images: ImageSet,
        config: AugmentationConfig,
        *,
        colour: Tensor,
        seed: int,
        micro_batch: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        start_example: int = 0,
        prefetch: int = 2,
        sampling: Sampling | None = None,
        halves: Halves | None = None,
        pinned: bool = False,
        apart: Apart | None = None,
    ) -> None:
        self.global_size = micro_batch * accumulation * world_size
        self._images, self._config, self._colour, self._seed = images, config, colour, seed
        self._halves = halves
        self._order: Order | HalvesOrder = (
            HalvesOrder(len(images), seed, halves.seeds)
            if halves is not None
            else SampledOrder(len(images), seed, sampling)
        )
        self._micro_batch, self._accumulation = micro_batch, accumulation
        self._rank, self._world_size = rank, world_size
        self._start, self._prefetch, self._pinned = start_example, prefetch, pinned
        self._apart = apart

    def __iter__(self) -> Generator[ImageStep]:
        """A new stream from `start_example`; close() it to end its threads or processes at once."""
        if self._apart is None:
            if self._config.transform is not None:
                raise ValueError("a transform of one's own takes the process's generators: give `apart`")
            return built_ahead(lambda index: self._ready(self._step(index)), self._prefetch)
        return prefetched(self._made_apart(self._apart), min(1, self._prefetch))

    def _made_apart(self, apart: Apart) -> Generator[ImageStep]:
        travelling = copy(self)
        travelling._images, travelling._apart = apart.images, None
        with closing(apart.make(travelling.arrays, self._prefetch)) as steps:
            for index, arrays in enumerate(steps):
                yield self._ready(_step_of(arrays, self._start + index * self.global_size))

    def arrays(self, index: int) -> Arrays:
        """A step as what can travel: the fields of its batches, [accumulation, B, ...] each."""
        batches = [vars(batch) for batch in self._step(index).micro_batches]
        there = [name for name, values in batches[0].items() if values is not None]
        return {name: torch.stack([batch[name] for batch in batches]).numpy() for name in there}

    def _ready(self, step: ImageStep) -> ImageStep:
        return replace(step, micro_batches=[_pinned(batch) for batch in step.micro_batches]) if self._pinned else step

    def _step(self, index: int) -> ImageStep:
        first = self._start + index * self.global_size
        starts = [
            first + (micro * self._world_size + self._rank) * self._micro_batch for micro in range(self._accumulation)
        ]
        batches = [self.batch(start, self._micro_batch) for start in starts]
        return ImageStep(batches, first, np.concatenate([batch.rows.numpy() for batch in batches]))

    def batch(self, first: int, count: int) -> ImageBatch:
        """The examples first, first + 1, … of the stream as they are trained on."""
        if self._config.mixup or self._config.cutmix:
            return self._mixed(first, count)
        examples, rows = self._examples(first, count)
        batch = self._labelled(self._augmented(examples, rows), rows)
        if self._halves is None or first < self._halves.views_from:
            return batch
        return self._with_views(batch, self._halves, examples, rows)

    def _with_views(self, batch: ImageBatch, halves: Halves, examples: Numbers, rows: Numbers) -> ImageBatch:
        light = self._config.model_copy(update={"transform": None, "randaugment": None, "erasing": None})
        views = [self._augmented(examples, rows, light, view) for view in range(1, VIEWS + 1)]
        batch = replace(batch, views=torch.stack(views, dim=1))
        if not halves.mixup:
            return batch
        chosen = partners(self._seed, int(examples[0]), len(examples), across=halves.across)
        parts = own_parts(self._uniforms("mixing", examples, rows, 1)[:, 0], halves.mixup)
        return replace(
            batch, partners=torch.from_numpy(chosen), pixel_weights=torch.from_numpy(parts.astype(np.float32))
        )

    def _examples(self, first: int, count: int) -> tuple[Numbers, Numbers]:
        return np.arange(first, first + count, dtype=np.int64), self._order.examples(first, count)

    def _labelled(self, pixels: Tensor, rows: Numbers) -> ImageBatch:
        return _batch(self._images, pixels, rows)

    def _mixed(self, first: int, count: int) -> ImageBatch:
        """A batch with each example's neighbour, whose images are made once."""
        start = first - first % 2
        end = first + count + (first + count) % 2
        examples, rows = self._examples(start, end - start)
        pixels = self._augmented(examples, rows)
        own = np.arange(first - start, first - start + count)
        partners = own ^ 1
        numbers = self._uniforms("mixing", examples, rows, MIXING_NUMBERS)[own]
        height, width = pixels.shape[-2:]
        mix = mixture(numbers, mixup=self._config.mixup, cutmix=self._config.cutmix, height=height, width=width)
        images, others = pixels[torch.from_numpy(own)], pixels[torch.from_numpy(partners)]
        plain = self._labelled(paste(images, others, mix.boxes), rows[own])
        blends = bool(self._config.mixup)
        return ImageBatch(
            plain.images,
            plain.labels,
            plain.rows,
            plain.groups,
            other_labels=torch.from_numpy(self._images.labels[rows[partners]]),
            label_weights=torch.from_numpy(mix.labels).float(),
            others=others if blends else None,
            pixel_weights=torch.from_numpy(mix.pixels).float() if blends else None,
        )

    def _augmented(
        self, examples: Numbers, rows: Numbers, config: AugmentationConfig | None = None, view: int = 0
    ) -> Tensor:
        """Bytes of examples after all that is done to one image alone: uint8 [B, C, S, S]."""
        config, draw = config or self._config, partial(self._uniforms, examples=examples, rows=rows, view=view)
        flips = draw("flip", count=1)[:, 0] < config.flip
        shifts = None
        if config.resized_crop is not None:
            pixels = self._parts(draw("crop", count=augment.CROP_NUMBERS), rows)
        else:
            pixels = self._images.pixels(rows)
            shifts = draw("crop", count=2) if config.padding else None
        pixels = augment.padded_crop(pixels, shifts, flips, padding=config.padding, mode=config.padding_mode)
        if config.transform is not None:
            pixels = transformed(pixels, config.transform, draw("transform", count=1))
        if (chosen := config.randaugment) is not None:
            numbers = draw("randaugment", count=numbers_for(chosen.operations))
            pixels = randaugment(pixels, numbers, operations=chosen.operations, magnitude=chosen.magnitude)
        if (erasing := config.erasing) is not None:
            numbers = draw("erasing", count=augment.ERASING_NUMBERS)
            how = {"probability": erasing.probability, "area": erasing.area, "ratio": erasing.ratio}
            pixels = augment.erase(pixels, numbers, **how, colour=self._colour)  # type: ignore[arg-type]
        return pixels

    def _parts(self, numbers: Uniforms, rows: Numbers) -> Tensor:
        """Random parts of images: of the originals, or of the pixels in memory."""
        crop = self._config.resized_crop
        assert crop is not None
        part = partial(augment.part_of_image, area=crop.area, ratio=crop.ratio)
        if not self._images.cached:
            crops: list[Crop] = [partial(part, each) for each in numbers]
            return self._images.pixels(rows, crops)
        pixels = self._images.pixels(rows)
        height, width = pixels.shape[-2:]
        return augment.resized_parts(pixels, np.array([part(each, width, height) for each in numbers]))

    def _uniforms(self, purpose: Purpose, examples: Numbers, rows: Numbers, count: int, view: int = 0) -> Uniforms:
        if isinstance(self._order, SampledOrder):
            rows = self._order.draws(int(examples[0]), len(examples))
        epochs = self._order.epochs(examples)
        return uniforms(purpose, seed=self._seed, epochs=epochs, images=rows, count=count, view=view)


class HeldOutImages:
    """A rank's part of the held-out images: `max_images` of them, always the same random ones, or all.

    Every rank yields the same number of batches, all of the same size, as forward passes under ZeRO-3 are collective;
    images beyond the last one are repeated and do not count.
    """

    def __init__(
        self, images: ImageSet, *, micro_batch: int, rank: int = 0, world_size: int = 1, max_images: int | None = None
    ) -> None:
        self._images, self._micro_batch = images, micro_batch
        self._rank, self._world_size = rank, world_size
        self.count = min(len(images), max_images or len(images))
        """Images over all ranks."""
        # Not the first ones: images in folders are sorted by class.
        self._rows = np.sort(Order(len(images), HELD_OUT_SEED).examples(0, self.count))

    def __len__(self) -> int:
        return -(-self.count // (self._micro_batch * self._world_size))

    def __iter__(self) -> Iterator[tuple[ImageBatch, int]]:
        """Batches, and how many of their first images count."""
        for turn in range(len(self)):
            first = (turn * self._world_size + self._rank) * self._micro_batch
            counted = max(0, min(self._micro_batch, self.count - first))
            places = np.minimum(np.arange(first, first + self._micro_batch, dtype=np.int64), self.count - 1)
            rows = self._rows[places]
            yield _batch(self._images, self._images.pixels(rows), rows), counted


def _batch(images: ImageSet, pixels: Tensor, rows: Numbers) -> ImageBatch:
    groups = None if images.groups is None else torch.from_numpy(images.groups[rows])
    return ImageBatch(pixels, torch.from_numpy(images.labels[rows]), torch.from_numpy(rows), groups)


def _step_of(arrays: Arrays, first: int) -> ImageStep:
    """The step that `TrainImages.arrays` took apart; a copy, since what travelled may not be written."""
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
    count = len(tensors["rows"])
    fields: list[dict[str, Tensor | None]]
    fields = [{"groups": None, **{name: values[i] for name, values in tensors.items()}} for i in range(count)]
    return ImageStep([_batch_of(each) for each in fields], first, tensors["rows"].flatten().numpy())


def _pinned(batch: ImageBatch) -> ImageBatch:
    return _batch_of({name: None if x is None else x.pin_memory() for name, x in vars(batch).items()})


def _batch_of(fields: Mapping[str, Tensor | None]) -> ImageBatch:
    return ImageBatch(**fields)  # type: ignore[arg-type]
