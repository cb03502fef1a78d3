"""What training an image classifier will need, without decoding its images or allocating its network.

Activations are not in it: what a convolution keeps depends on the algorithm that the GPU's library picks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lowland.trainers.data.images.data import square_side
from lowland.trainers.data.images.decode import BadImageError, header
from lowland.trainers.data.images.encoded import Encoded
from lowland.trainers.data.images.labels import Names, class_names
from lowland.trainers.data.images.long_tail import tail_counts
from lowland.trainers.data.images.places import places
from lowland.trainers.data.images.sources import Columns, Value, read_rows
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.estimate.activations import ActivationTrace
from lowland.trainers.estimate.optimizers import optimizer_memory
from lowland.trainers.estimate.sharding import Memory, Plan, memory
from lowland.trainers.models import ImageInput, NetworkPair, classifier_network, classifier_sizes
from lowland.trainers.optimizers import parameter_groups
from lowland.trainers.recipe import ImageClassificationConfig, ImageDataConfig
from lowland.trainers.recipe.methods import cross_split


@dataclass(frozen=True)
class ImageEstimate:
    """What a training will need."""

    parameters: int
    classes: int
    size: int
    """Side of the images, in pixels."""
    workers: int
    stages: dict[int, Memory]
    """Memory per GPU by ZeRO stage (only 0 for engine torch), without activations."""
    stage: int
    """The recipe's own stage."""
    images_per_step: int
    """Over all workers."""
    steps: int
    forward_flops: int
    """Of one image in one network."""
    passes: int
    """Forward passes that training costs an image, a backward pass counted as two."""
    checkpoint_bytes: int
    peak_flops: float | None
    """Of one GPU; None if not known."""
    mfu: float
    """Part of the peak that the time assumes."""

    @property
    def flops(self) -> float:
        """Of the whole training."""
        return float(self.passes * self.forward_flops * self.images_per_step * self.steps)

    @property
    def seconds(self) -> float | None:
        """At the stated MFU, without evaluation, checkpoints and start, if data are never waited for."""
        return self.flops / (self.peak_flops * self.workers * self.mfu) if self.peak_flops else None


def estimate_images(
    config: ImageClassificationConfig, *, workers: int, peak_flops: float | None = None, mfu: float = 0.4
) -> ImageEstimate:
    """Estimates a training.

    Args:
        config: the training.
        workers: world size, >= 1.
        peak_flops: of one GPU, dense, in the training's precision.
        mfu: part of the peak to assume, in (0, 1].

    Raises:
        UserError: the data or the model cannot be read, or the batch cannot be cut.
    """
    try:
        accumulation = config.batch.accumulation_steps(workers=workers)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    images = config.batch.micro_batch * accumulation * workers
    seen, rows = _seen(config)
    parameters, forward = classifier_sizes(config.model, seen)
    network, two = classifier_network(config.model, seen), cross_split(config.methods)
    if two is not None:
        network, parameters = NetworkPair(network, classifier_network(config.model, seen)), 2 * parameters
    optimizer = optimizer_memory(config.optimizer, network)
    groups = tuple(
        sum(p.numel() for p in group.parameters.values()) for group in parameter_groups(network, config.optimizer)
    )
    plan = Plan(workers, config.sharding, config.model.dtype == "bfloat16", accumulation)
    nothing = ActivationTrace(points=((sum(groups), 0),))
    largest = max(p.numel() for p in network.parameters())
    averages = parameters * torch.float32.itemsize if two is not None and two.average else 0
    plans = [plan] if config.sharding.engine == "torch" else [plan.at_stage(stage) for stage in range(4)]
    return ImageEstimate(
        parameters=parameters,
        classes=len(seen.classes),
        size=seen.size,
        workers=workers,
        stages={p.sharding.zero_stage: _with(averages, memory(p, groups, optimizer, nothing, largest)) for p in plans},
        stage=config.sharding.zero_stage,
        images_per_step=images,
        steps=config.length.in_steps(tokens_per_step=0, steps_per_epoch=rows / images),
        forward_flops=forward,
        passes=3 if two is None else two.forward_passes,
        checkpoint_bytes=int(parameters * (torch.float32.itemsize + optimizer.state)) + averages,
        peak_flops=peak_flops,
        mfu=mfu,
    )


def _with(averages: int, memory: Memory) -> Memory:
    """Averaged weights lie beside those that are trained, whole on every rank."""
    return replace(memory, weights=memory.weights + averages)


def _seen(config: ImageClassificationConfig) -> tuple[ImageInput, int]:
    """What the network sees, as far as labels and the first image say it, and the number of rows to train on."""
    data = config.data
    rows = read_rows(places(data).path, Columns.of(data), data.shapes)
    classes = class_names(rows.labels, rows.names, data.classes, data.path)
    size = data.size or _first_size(rows.images)
    share = 1.0 if data.held_out_apart else 1 - max(1, round(data.held_out * len(rows))) / len(rows)
    grey = (0.5,) * data.channels
    return ImageInput(size, data.channels, grey, grey, classes.names), _training_rows(rows.labels, classes, share, data)


def _training_rows(labels: Sequence[Value], classes: Names, share: float, data: ImageDataConfig) -> int:
    """How many rows are trained on, if as large a share of each class is as of all."""
    if data.long_tail is None:
        return round(share * len(labels))
    numbers = [number for label in labels if label is not None and (number := classes.number(label)) is not None]
    counts = np.bincount(numbers, minlength=len(classes))
    return int(tail_counts(np.rint(share * counts).astype(np.int64), data.long_tail.ratio).sum())


def _first_size(images: Encoded) -> int:
    try:
        with images.opened(0) as data:
            found = header(data)
    except BadImageError as error:
        raise DataError(f"{images.place(0)}: {error.reason} ({error})") from None
    return square_side({(found.width, found.height)})
