"""An image classifier trained by a loop of plain torch: the anchor beside lowland's trainings."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland.trainers.models import ImageInput
from lowland.trainers.models.image_folders import own_network
from lowland.trainers.recipe import ImageClassificationConfig

EVALUATED_AT_ONCE = 500


@dataclass
class Outcome:
    """What a training gave."""

    accuracy: float
    """On the held-out images after the last step, as a part of them."""
    curve: list[tuple[int, float]]
    """Steps done and accuracy, at each evaluation."""
    losses: list[tuple[int, float]]
    """Steps done and mean training loss since the entry before, in nats and with label smoothing."""
    epochs: float
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    """What else is known at the end."""


class Pixels:
    """Images on the device, as bytes, and what an epoch makes of them.

    Args:
        path: .npz with train, train_labels, test, test_labels; images uint8 [N, H, W, C].
        device: where they stay.
        padding: pixels of zeros around an image from which a window is cut.
        flip: part of the images that is mirrored.
    """

    def __init__(self, path: Path, device: torch.device, *, padding: int, flip: float) -> None:
        arrays = np.load(path)
        read = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        train, test = (read[name].permute(0, 3, 1, 2).contiguous().to(device) for name in ("train", "test"))
        self.labels, self._test_labels = (read[f"{name}_labels"].long().to(device) for name in ("train", "test"))
        values = train.float() / 255
        self._mean, self._std = (of.view(1, -1, 1, 1) for of in (values.mean((0, 2, 3)), values.std((0, 2, 3))))
        self.channels, self.side, self._test = train.shape[1], train.shape[2], test
        self._padding, self._flip, self._device = padding, flip, device
        self._padded = functional.pad(train, [padding] * 4)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, C, S, S] of random windows, some mirrored, and their labels [B]."""
        count, reach = len(rows), torch.arange(self.side, device=self._device)
        down, across = torch.randint(2 * self._padding + 1, (2, count, 1), device=self._device)
        mirrored = torch.rand(count, 1, device=self._device) < self._flip
        columns = across + torch.where(mirrored, reach.flip(0), reach)
        images = self._padded[rows[:, None, None], :, (down + reach)[:, :, None], columns[:, None, :]]
        return self._normal(images.permute(0, 3, 1, 2)), self.labels[rows]

    def orders(self, size: int) -> Iterator[Tensor]:
        """Rows of one batch after the other, epoch after epoch in a new order; a batch may span two epochs."""
        left = torch.empty(0, dtype=torch.int64, device=self._device)
        while True:
            while len(left) < size:
                left = torch.cat([left, torch.randperm(len(self.labels), device=self._device)])
            yield left[:size]
            left = left[size:]

    @torch.no_grad()
    def accuracy(self, network: nn.Module, *, bf16: bool) -> float:
        """Part of the test images that are told right, in evaluation mode."""
        network.eval()
        right = torch.zeros((), dtype=torch.int64, device=self._device)
        for some, labels in zip(
            self._test.split(EVALUATED_AT_ONCE), self._test_labels.split(EVALUATED_AT_ONCE), strict=True
        ):
            with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
                right += (network(self._normal(some)).argmax(1) == labels).sum()
        network.train()
        return float(right) / len(self._test)

    def _normal(self, images: Tensor) -> Tensor:
        values = (images.float() / 255 - self._mean) / self._std
        return values.contiguous(memory_format=torch.channels_last)


def train(config: ImageClassificationConfig, path: Path, device: torch.device) -> Outcome:
    """Trains what a recipe says with torch alone: SGD, crops of padded images, mirroring, label smoothing.

    Only the network is lowland's, with torch's own BatchNorm.

    Args:
        config: of the recipe; its data are not read.
        path: the images, see `Pixels`.
        device: to train on.

    Raises:
        ValueError: the recipe wants what this loop does not have.
    """
    _require_plain(config)
    begun, augmentation, bf16 = time.monotonic(), config.augmentation, config.model.dtype == "bfloat16"
    torch.manual_seed(config.seed)
    pixels = Pixels(path, device, padding=augmentation.padding, flip=augmentation.flip)
    network = _network(config, pixels).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, size = _optimizer(config, network), config.batch.micro_batch
    total, every = (_steps(amount, len(pixels.labels) / size) for amount in (config.length, config.evaluation.every))
    curve: list[tuple[int, float]] = []
    losses: list[tuple[int, float]] = []
    recent: list[Tensor] = []
    for step, rows in zip(range(1, total + 1), pixels.orders(size), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * factor(config, step, total)
        images, labels = pixels.batch(rows)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=augmentation.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(loss.detach())
        if step % config.log_every == 0 or step == total:
            losses.append((step, float(torch.stack(recent).mean())))
            recent = []
        if step == total or (every and step % every == 0):
            curve.append((step, pixels.accuracy(network, bf16=bf16)))
    return Outcome(curve[-1][1], curve, losses, total * size / len(pixels.labels), time.monotonic() - begun)


def factor(config: ImageClassificationConfig, step: int, total: int) -> float:
    """The learning rate of a step, from 1 to total, over its peak: a linear rise, then a line or a cosine to zero."""
    warmup = config.schedule.warmup.in_steps(tokens_per_step=0, steps_per_epoch=0, total_steps=total)
    if step <= warmup:
        return step / warmup
    done = (step - warmup) / (total - warmup)
    return 1 - done if config.schedule.name == "linear" else (1 + math.cos(math.pi * done)) / 2


def _require_plain(config: ImageClassificationConfig) -> None:
    augmentation = config.augmentation
    others = (augmentation.resized_crop, augmentation.randaugment, augmentation.erasing, config.optimizer.sam)
    mixed = augmentation.mixup or augmentation.cutmix or augmentation.padding_mode != "zeros"
    ends = getattr(config.schedule, "final", None) == 0 and config.schedule.name in ("linear", "cosine")
    if any(others) or mixed or config.methods or config.optimizer.name != "sgd" or not ends:
        raise ValueError("the plain loop has SGD, crops, mirroring, label smoothing, and schedules that end at zero")


def _network(config: ImageClassificationConfig, pixels: Pixels) -> nn.Module:
    classes = tuple(str(number) for number in range(int(pixels.labels.max()) + 1))
    seen = ImageInput(pixels.side, pixels.channels, (), (), classes)
    network = own_network(str(config.model.architecture), seen)
    if network is None:
        raise ValueError(f"the plain loop has lowland's own networks, not {config.model.architecture}")
    return network


def _optimizer(config: ImageClassificationConfig, network: nn.Module) -> torch.optim.SGD:
    """Matrices and kernels are decayed, vectors are not."""
    chosen: Any = config.optimizer
    decayed = [p for p in network.parameters() if p.dim() >= 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": chosen.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=chosen.lr, momentum=chosen.momentum, nesterov=chosen.nesterov, fused=True)


def _steps(amount: Any, per_epoch: float) -> int:
    return 0 if amount is None else int(amount.in_steps(tokens_per_step=0, steps_per_epoch=per_epoch))
