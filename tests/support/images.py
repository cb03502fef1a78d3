"""A few digits with groups, and short trainings on them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from support.training import Outcome, states
from support.vision import config, encoded, train_config, write_parquet

from lowland.trainers.recipe import ImageClassificationConfig

CLASSES = 3


def write_digits(path: Path, count: int = 96) -> Path:
    """A Parquet file of images of the digits 0 to 2, with a group that goes mostly with the class."""
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < CLASSES)[:count]
    labels = digits.target[chosen]
    odd = np.arange(count) % 4 == 0
    groups = [f"g{int(label > 0) ^ int(flip)}" for label, flip in zip(labels, odd, strict=True)]
    images = [encoded((digits.images[index] / 16 * 255).astype(np.uint8)) for index in chosen]
    return write_parquet(path, images, labels.tolist(), group=groups)


def image_config(data: Path, methods: Any = (), **changes: Any) -> ImageClassificationConfig:
    """Six steps of 24 images as they are; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "length": "6 steps",
        "data": {"path": str(data), "group_column": "group", "channels": 1},
        "augmentation": {},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "schedule": {"name": "cosine", "warmup": "1 steps"},
        "batch": {"micro_batch": 6, "global_images": 24, "max_grad_norm": 1.0},
        "evaluation": {"every": None},
        "methods": methods,
    }
    return config(**{**sections, **changes})


def train_images(
    recipe: ImageClassificationConfig, folder: Path, *, stop_after: int | None = None, export: bool = False
) -> Outcome:
    """One training in the current process group, or alone."""
    return train_config(recipe, folder, stop_after=stop_after, export=export)[0]


def train_methods(data: Path, folder: Path, methods: Any, changes: dict[str, Any]) -> Outcome:
    """One training with methods, on one thread; for other processes."""
    torch.set_num_threads(1)
    return train_images(image_config(data, methods, **changes), folder)


def trained_weights(folder: Path, step: int = 6) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    return states(folder, step)["weight"]
