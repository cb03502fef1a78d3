"""Short trainings of small image classifiers on the digits, and images and files of all kinds."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open
from support import training
from support.training import Outcome, Recorder

from lowland.trainers.recipe import ImageClassificationConfig

BATCH_NORM: dict[str, Any] = {"model": {"architecture": "wide-resnet-10-1"}}
WITHOUT_NORM: dict[str, Any] = {
    "model": {
        "config": {
            "model_type": "vit",
            "hidden_size": 24,
            "intermediate_size": 52,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "patch_size": 4,
        }
    },
    "optimizer": {"name": "adamw", "lr": 3e-3},
}
TORCH: dict[str, Any] = {"sharding": {"engine": "torch"}}
EVERYTHING: dict[str, Any] = {
    "padding": 1,
    "flip": 0.5,
    "randaugment": {},
    "erasing": {},
    "mixup": 0.5,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
}


def config(**changes: Any) -> ImageClassificationConfig:
    """A recipe of 12 steps of 32 digits; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "task": "image-classification",
        "length": "12 steps",
        "data": {"channels": 1, "threads": 1},
        **BATCH_NORM,
        "augmentation": EVERYTHING,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "cosine", "warmup": "10%"},
        "batch": {"micro_batch": 8, "global_images": 32},
        "evaluation": {"every": "6 steps", "micro_batch": 40, "pictures": False},
        "checkpoints": {"every": None, "export": False},
        **TORCH,
        "log_every": 1,
        "seed": 3,
    }
    return ImageClassificationConfig.model_validate({**sections, **changes})


def train(
    folder: Path, changes: dict[str, Any] | None = None, *, stop_after: int | None = None, export: bool = False
) -> Outcome:
    """One training in the current process group, or alone."""
    return train_and_watch(folder, changes, stop_after=stop_after, export=export)[0]


def train_and_watch(
    folder: Path, changes: dict[str, Any] | None = None, *, stop_after: int | None = None, export: bool = False
) -> tuple[Outcome, Recorder]:
    """The same, with its monitor."""
    return train_config(config(**(changes or {})), folder, stop_after=stop_after, export=export)


def train_config(
    recipe: ImageClassificationConfig, folder: Path, *, stop_after: int | None = None, export: bool = False
) -> tuple[Outcome, Recorder]:
    """The same, of a whole recipe."""
    result, recorder = training.train(recipe, folder, stop_after=stop_after, export=export)
    return Outcome(recorder.values, recorder.events, result), recorder


def interrupted(folder: Path, changes: dict[str, Any], stop_after: int) -> Outcome:
    """A training that is stopped after a step; for other processes."""
    return train(folder, changes, stop_after=stop_after)


def buffers(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The buffers of a checkpoint."""
    found: dict[str, torch.Tensor] = {}
    for path in (folder / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if key.startswith("buffer|"):
                    found[key.split("|", 3)[3]] = file.get_tensor(key)
    return found


def encoded(pixels: Any, kind: str = "PNG", mode: str | None = None) -> bytes:
    """An encoded image of an array (uint8 [H, W] or [H, W, C], or uint16 [H, W])."""
    image = Image.fromarray(np.asarray(pixels))
    stream = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(stream, kind)
    return stream.getvalue()


def noise(seed: int, *shape: int) -> Any:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_parquet(path: Path, images: list[bytes | None], labels: Any, **columns: Any) -> Path:
    """A Parquet file with Hugging Face's struct of images."""
    structs = [None if data is None else {"bytes": data, "path": None} for data in images]
    table = {"image": pa.array(structs, pa.struct({"bytes": pa.binary(), "path": pa.string()})), "label": labels}
    pq.write_table(pa.table({**table, **columns}), path)
    return path
