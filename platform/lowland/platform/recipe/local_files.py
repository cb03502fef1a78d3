"""What a recipe's files say, as far as they lie on this machine."""

import json
from pathlib import Path
from typing import Any

from lowland.platform.recipe.model import ScalingConfig
from lowland.trainers.data.manifest import Manifest
from lowland.trainers.errors import DataError
from lowland.trainers.recipe import Amount, BatchConfig, LanguageModelConfig, PackedTextConfig

POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
"""What the configurations of models call the longest sequence they have positions for."""


def local_folder(path: str) -> Path | None:
    """The path as a folder of this machine; None for a URI of other storage."""
    if path.startswith("file://"):
        return Path(path.removeprefix("file://"))
    return None if "://" in path else Path(path)


def prepare_command(data: PackedTextConfig, model: LanguageModelConfig) -> str:
    """The command that makes the data of a recipe; SOURCE stands where only the user knows."""
    source = "stdlib" if Path(data.path).name == "stdlib" else "SOURCE"
    config = model_config(model)
    length = next((config[name] for name in POSITIONS if isinstance(config.get(name), int)), 1024)
    tokenizer = f" --tokenizer {model.path}" if model.path is not None else ""
    return f"lowland data prepare {source} --out {data.path} --sequence-length {length}{tokenizer}"


def read_manifest(data: PackedTextConfig) -> Manifest | None:
    """The manifest, if it can be read here; `check_data` tells why not."""
    folder = local_folder(data.path)
    try:
        return Manifest.read(folder) if folder is not None else None
    except DataError:
        return None


def model_config(model: LanguageModelConfig) -> dict[str, Any]:
    """The model's configuration; empty if it is on the hub or unreadable."""
    if model.config is not None:
        return model.config
    try:
        config = json.loads((Path(model.path or "") / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def fraction_of_training(
    part: Amount, length: Amount, batch: BatchConfig, data: PackedTextConfig, scaling: ScalingConfig
) -> float | None:
    """The part of the training that an amount is; None where that shows only once the data is known."""
    if part.unit == "%":
        return part.value / 100
    if part.unit == length.unit and length.value > 0:
        return part.value / length.value
    manifest = read_manifest(data)
    if manifest is None or length.value == 0:
        return None
    try:
        accumulation = batch.accumulation_steps(workers=scaling.workers, sequence_length=manifest.sequence_length)
    except ValueError:
        return None
    sequences = batch.micro_batch * scaling.workers * accumulation
    train = manifest.splits.get("train")
    cut = {"tokens_per_step": sequences * manifest.sequence_length}
    per_epoch = (train.rows if train is not None else 0) / sequences
    total = length.in_steps(**cut, steps_per_epoch=per_epoch)
    return part.in_steps(**cut, steps_per_epoch=per_epoch) / total if total else None
