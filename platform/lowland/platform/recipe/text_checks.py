"""Mistakes between fields of a language model's recipe, as far as they show without a cluster; see `checks`."""

from collections.abc import Iterator

from lowland.platform.recipe.conflict import Conflict
from lowland.platform.recipe.local_files import (
    POSITIONS,
    fraction_of_training,
    local_folder,
    model_config,
    prepare_command,
    read_manifest,
)
from lowland.platform.recipe.model import ScalingConfig
from lowland.trainers.data.manifest import Manifest
from lowland.trainers.errors import DataError
from lowland.trainers.recipe import (
    Amount,
    BatchConfig,
    EvaluationConfig,
    LanguageModelConfig,
    PackedTextConfig,
    ScheduleConfig,
)


def check_schedule(
    length: Amount, schedule: ScheduleConfig, batch: BatchConfig, data: PackedTextConfig, scaling: ScalingConfig
) -> Iterator[Conflict]:
    """Warm-up and cool-down that do not fit into the training."""
    cooldown = getattr(schedule, "cooldown", None)
    parts = [part for part in (schedule.warmup, cooldown) if part is not None]
    fractions = [fraction_of_training(part, length, batch, data, scaling) for part in parts]
    if any(fraction is None for fraction in fractions) or sum(fraction or 0 for fraction in fractions) <= 1:
        return
    both = f"with schedule.cooldown ({cooldown}) " if cooldown is not None else ""
    text = f"{both}longer than length ({length}); shorten the schedule or train longer"
    yield Conflict(("schedule", "warmup"), schedule.warmup, text)


def check_batch(batch: BatchConfig, data: PackedTextConfig, scaling: ScalingConfig) -> Iterator[Conflict]:
    """A global batch that cannot be cut evenly."""
    name = "global_tokens" if batch.global_tokens is not None else "global_sequences"
    manifest = read_manifest(data)
    if batch.global_tokens is not None and manifest is None:
        return
    value = getattr(batch, name)
    try:
        batch.accumulation_steps(
            workers=scaling.workers, sequence_length=manifest.sequence_length if manifest is not None else 1
        )
    except ValueError as error:
        text = str(error).removeprefix(f"batch.{name} ({value}) ").replace("x workers", "x scaling.workers")
        yield Conflict(("batch", name), value, text)


def check_data(data: PackedTextConfig, model: LanguageModelConfig) -> Iterator[Conflict]:
    """Data that has not been prepared, or that is broken."""
    folder = local_folder(data.path)
    if folder is None:
        return
    if not (folder / "manifest.json").exists():
        text = f"no manifest.json there; first run: {prepare_command(data, model)}"
        yield Conflict(("data", "path"), data.path, text)
        return
    try:
        Manifest.read(folder)
    except DataError as error:
        yield Conflict(("data", "path"), data.path, str(error))


def check_held_out(data: PackedTextConfig, evaluation: EvaluationConfig) -> Iterator[Conflict]:
    """Nothing that is left to evaluate on."""
    manifest = read_manifest(data)
    rows = manifest.splits["held_out"].rows if manifest is not None and "held_out" in manifest.splits else 0
    if rows and evaluation.skip_sequences >= rows:
        text = f"must be less than the {rows} held-out sequences of data.path"
        yield Conflict(("evaluation", "skip_sequences"), evaluation.skip_sequences, text)


def check_positions(model: LanguageModelConfig, data: PackedTextConfig) -> Iterator[Conflict]:
    """Sequences longer than the model has positions for."""
    manifest, config = read_manifest(data), model_config(model)
    name = next((name for name in POSITIONS if isinstance(config.get(name), int)), None)
    if manifest is None or name is None or manifest.sequence_length <= config[name]:
        return
    longer = f"less than the sequence length of data.path ({manifest.sequence_length})"
    again = f"prepare the data with --sequence-length {config[name]}"
    if model.config is not None:
        yield Conflict(("model", "config", name), config[name], f"{longer}; raise it, or {again}")
    else:
        yield Conflict(
            ("model", "path"), model.path, f"{name} of its config.json ({config[name]}) is {longer}; {again}"
        )


def check_vocabulary(model: LanguageModelConfig, data: PackedTextConfig) -> Iterator[Conflict]:
    """Tokens that the model has no embedding for."""
    manifest, vocabulary = read_manifest(data), model_config(model).get("vocab_size")
    if manifest is None or not isinstance(vocabulary, int) or vocabulary >= manifest.tokenizer.vocab_size:
        return
    fewer = f"less than the vocabulary of data.path's tokenizer ({manifest.tokenizer.vocab_size})"
    if model.config is not None:
        text = f"{fewer}; remove it to take the tokenizer's"
        yield Conflict(("model", "config", "vocab_size"), vocabulary, text)
    else:
        again = f"prepare the data with --tokenizer {model.path}"
        yield Conflict(
            ("model", "path"), model.path, f"vocab_size of its config.json ({vocabulary}) is {fewer}; {again}"
        )


def check_attention(model: LanguageModelConfig, scaling: ScalingConfig) -> Iterator[Conflict]:
    """Attention kernels on what they cannot run on."""
    if not model.attention.startswith("flash_attention"):
        return
    path = ("model", "attention")
    if model.dtype == "float32":
        text = "cannot compute in model.dtype (float32); set model.dtype: bfloat16 or model.attention: sdpa"
        yield Conflict(path, model.attention, text)
    if scaling.gpus_per_worker == 0:
        text = "needs a GPU, and scaling.gpus_per_worker is 0; set it to 1 or set model.attention: sdpa"
        yield Conflict(path, model.attention, text)


def check_gpus(model: LanguageModelConfig, scaling: ScalingConfig) -> Iterator[Conflict]:
    """What only GPUs have, asked for without GPUs."""
    if scaling.gpus_per_worker > 0:
        return
    needs = "needs a GPU, and scaling.gpus_per_worker is 0; set it to 1 or"
    if model.fused_loss == "always":
        yield Conflict(("model", "fused_loss"), model.fused_loss, f"{needs} set model.fused_loss: auto")
    if scaling.accelerator_type is not None:
        yield Conflict(("scaling", "accelerator_type"), scaling.accelerator_type, f"{needs} remove the type")
