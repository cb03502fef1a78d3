"""A few digits with groups, and short trainings on them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support.training import Outcome, states, train

from lowland.trainers.recipe import ImageClassificationConfig

CLASSES = 3


def write_digits(path: Path, count: int = 96) -> Path:
    """A Parquet file of images of the digits 0 to 2, with a group that goes mostly with the class."""
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < CLASSES)[:count]
    labels = digits.target[chosen]
    odd = np.arange(count) % 4 == 0
    groups = [f"g{int(label > 0) ^ int(flip)}" for label, flip in zip(labels, odd, strict=True)]
    table = {
        "image": [_png(digits.images[index]) for index in chosen],
        "label": labels.astype(int).tolist(),
        "group": groups,
    }
    pq.write_table(pa.table(table), path)
    return path


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray((image / 16 * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def image_config(data: Path, methods: Any = (), **changes: Any) -> ImageClassificationConfig:
    """Six steps of 24 images; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "task": "image-classification",
        "length": "6 steps",
        "model": {"architecture": "wide-resnet-10-1"},
        "data": {"path": str(data), "group_column": "group", "channels": 1},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "schedule": {"name": "cosine", "warmup": "1 steps"},
        "batch": {"micro_batch": 6, "global_images": 24, "max_grad_norm": 1.0},
        "sharding": {"engine": "torch"},
        "evaluation": {"every": None},
        "checkpoints": {"every": None, "export": False},
        "log_every": 1,
        "seed": 3,
        "methods": methods,
    }
    return ImageClassificationConfig.model_validate({**sections, **changes})


def train_images(
    config: ImageClassificationConfig, folder: Path, *, stop_after: int | None = None, export: bool = False
) -> Outcome:
    """One training in the current process group, or alone."""
    result, recorder = train(config, folder, stop_after=stop_after, export=export)
    return Outcome(recorder.values, recorder.events, result)


def train_methods(data: Path, folder: Path, methods: Any, changes: dict[str, Any]) -> Outcome:
    """One training with methods, on one thread; for other processes."""
    torch.set_num_threads(1)
    return train_images(image_config(data, methods, **changes), folder)


def trained_weights(folder: Path, step: int = 6) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    return states(folder, step)["weight"]
