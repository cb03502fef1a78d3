"""What an image classification of two networks on halves of the data (CrossSplit) does otherwise than one network's."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lowland.trainers.data.images.halves import Halves
from lowland.trainers.engines import Engine
from lowland.trainers.methods.averaged import WeightAverage
from lowland.trainers.methods.base import Method
from lowland.trainers.methods.cross_split import CrossSplit
from lowland.trainers.methods.objective import Objective
from lowland.trainers.models import (
    CrossSplitLoss,
    ImageInput,
    NetworkPair,
    build_image_classifier,
    mean_prediction,
    save_pair,
)
from lowland.trainers.recipe import ImageClassificationConfig
from lowland.trainers.recipe.methods import cross_split
from lowland.trainers.tasks.image_metrics import Tally

NAMES = ("first", "second")


def seeds_of_networks(seed: int) -> tuple[int, int]:
    """Of initial weights and of the order of examples: the training's, and one that is no seed close to it."""
    return seed, (seed + 2**31) % 2**32


class TwoNetworks:
    """CrossSplit's networks, batches, evaluation and export.

    Args:
        config: the training.
        method: of its methods.
        seen: what images are.
    """

    def __init__(self, config: ImageClassificationConfig, method: CrossSplit, seen: ImageInput) -> None:
        self._config, self._method, self._seen = config, method, seen
        self._seeds = seeds_of_networks(config.seed)

    @classmethod
    def of(cls, config: ImageClassificationConfig, methods: Sequence[Method], seen: ImageInput) -> "TwoNetworks | None":
        """None if the recipe trains one network."""
        method = next((method for method in methods if isinstance(method, CrossSplit)), None)
        return cls(config, method, seen) if method is not None else None

    def networks(self, dtype: torch.dtype) -> NetworkPair:
        """Both on the CPU, of different initial weights."""
        build = [build_image_classifier(self._config.model, self._seen, dtype=dtype, seed=seed) for seed in self._seeds]
        return NetworkPair(*build)

    def module(self, pair: nn.Module, objective: Objective) -> CrossSplitLoss:
        """With their loss."""
        assert isinstance(pair, NetworkPair)
        if decay := self._method.settings.average:
            self._method.average = WeightAverage(self.networks(torch.float32), decay)
        channels_last = self._config.model.channels_last
        return CrossSplitLoss(pair, self._seen, self._method, objective, channels_last=channels_last)

    def halves(self, examples_per_step: int) -> Halves:
        """How batches are made."""
        recipe = cross_split(self._config.methods)
        assert recipe is not None
        views_from = self._method.settings.views_from * examples_per_step
        return Halves(self._seeds, views_from, recipe.mixup, across=recipe.unlabelled > 0)

    def save(self, pair: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
        """Writes both networks."""
        assert isinstance(pair, NetworkPair)
        save_pair(pair, self._config.model, self._seen, weights, folder)


class TalliesAlone:
    """Counts for each network alone, beside those of their mean prediction.

    Args:
        classes: names of the K classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes, self._tallies = classes, tuple(Tally(len(classes)) for _ in NAMES)

    def logits(self, engine: Engine, images: Tensor, counted: int, labels: Tensor, rows: Tensor) -> Tensor:
        """Logits [B, K] of the mean prediction, after counting each network's.

        Args:
            engine: of the training, evaluating.
            images: uint8 [B, C, S, S], on its device.
            counted: how many of the first images count.
            labels: int64 [B], on the CPU as `rows`.
            rows: int64 [B].
        """
        each = [engine.evaluate({"images": images, "network": torch.tensor(index)}) for index in range(len(NAMES))]
        for tally, logits in zip(self._tallies, each, strict=True):
            tally.add(logits[:counted], labels[:counted], rows[:counted])
        return mean_prediction(each[0], each[1])

    def numbers(self) -> list[list[float]]:
        """All counts of each, to be added up over ranks."""
        return [tally.numbers() for tally in self._tallies]

    def metrics(self, numbers: Sequence[Sequence[float]]) -> dict[str, float]:
        """Loss and accuracy of each, of counts of all ranks."""
        found: dict[str, float] = {}
        for name, tally, counts in zip(NAMES, self._tallies, numbers, strict=True):
            tally.replace(counts)
            values = tally.metrics(self._classes)
            found |= {f"eval/{name}_network_{key}": values[f"eval/{key}"] for key in ("accuracy", "loss")}
        return found
