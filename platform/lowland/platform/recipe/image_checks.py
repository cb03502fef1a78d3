"""Mistakes between fields of an image classifier's recipe, as far as they show without a cluster; see `checks`."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from lowland.platform.recipe.conflict import Conflict
from lowland.platform.recipe.local_files import local_folder
from lowland.platform.recipe.model import ScalingConfig
from lowland.trainers.recipe import (
    Amount,
    AugmentationConfig,
    HubDataConfig,
    ImageBatchConfig,
    ImageDataConfig,
    ImageModelConfig,
    ScheduleConfig,
    is_hub_id,
)
from lowland.trainers.recipe.image_data import DIGITS, EMBEDDED
from lowland.trainers.recipe.image_model import INSTALL_TIMM, PATCH_SIZE
from lowland.trainers.recipe.methods import CoBalTConfig, MethodSection

IMAGE_METRICS = (
    "eval/loss",
    "eval/accuracy",
    "eval/top5_accuracy",
    "eval/mean_class_accuracy",
    "eval/worst_class_accuracy",
    "eval/worst_group_accuracy",
    "eval/calibration_error",
)
"""What checkpoints can be ranked by."""


def check_image_data(data: ImageDataConfig) -> Iterator[Conflict]:
    """Images that are not there."""
    for name in ("path", "held_out_path"):
        path = getattr(data, name)
        folder = local_folder(path) if path is not None and path not in EMBEDDED else None
        if folder is None or any(character in path for character in "*?["):
            continue
        if not folder.expanduser().exists() and not (name == "path" and data.on_hub):
            text = (
                "no such file or folder; give Parquet files, a folder with a subfolder for each class, digits or shapes"
            )
            hint = "; of a data set of the hub give data.hub.held_out_split" if is_hub_id(path) else ""
            yield Conflict(("data", name), path, text + hint)
    if data.group_column is not None and data.path == DIGITS:
        yield Conflict(("data", "group_column"), data.group_column, "digits have no groups; remove it")


def check_image_hub(data: ImageDataConfig) -> Iterator[Conflict]:
    """Parts of a data set of the hub, where there is none, and two kinds of held-out images."""
    if not data.on_hub:
        fields = HubDataConfig.model_fields
        for name in (name for name, field in fields.items() if getattr(data.hub, name) != field.default):
            text = f"data.path ({data.path}) is no data set of the hub; remove it, or write the data set as owner/name"
            yield Conflict(("data", "hub", name), getattr(data.hub, name), text)
    elif data.hub.held_out_split is not None and data.held_out_path is not None:
        text = "data.held_out_path names held-out images too; remove one of them"
        yield Conflict(("data", "hub", "held_out_split"), data.hub.held_out_split, text)


def check_concept_network(methods: Sequence[MethodSection]) -> Iterator[Conflict]:
    """A network to find concepts by that is not there."""
    text = "no config.json there; cobalt.path is the `model` folder of a run, or null for the network in training"
    for index, method in enumerate(methods):
        folder = method.path if isinstance(method, CoBalTConfig) else None
        if folder is not None and not (Path(folder) / "config.json").exists():
            yield Conflict(("methods", index, "path"), folder, text)


def check_timm(model: ImageModelConfig) -> Iterator[Conflict]:
    """A network of a package that is not here."""
    if model.timm is not None and find_spec("timm") is None:
        yield Conflict(("model", "architecture"), model.architecture, f"needs timm: {INSTALL_TIMM}")


def check_image_batch(batch: ImageBatchConfig, model: ImageModelConfig, scaling: ScalingConfig) -> Iterator[Conflict]:
    """A global batch that cannot be cut evenly, or is cut where BatchNorm wants it whole."""
    try:
        accumulation = batch.accumulation_steps(workers=scaling.workers)
    except ValueError as error:
        text = str(error).removeprefix(f"batch.global_images ({batch.global_images}) ")
        yield Conflict(("batch", "global_images"), batch.global_images, text.replace("x workers", "x scaling.workers"))
        return
    if accumulation > 1 and model.batch_norm == "global":
        text = (
            f"needs a step in one pass, and it is {accumulation}: raise batch.micro_batch or scaling.workers, or set "
            "batch_norm: micro_batch"
        )
        yield Conflict(("model", "batch_norm"), model.batch_norm, text)


def check_image_schedule(length: Amount, schedule: ScheduleConfig) -> Iterator[Conflict]:
    """Warm-up and cool-down that do not fit into the training, as far as that shows without the data."""
    cooldown: Amount | None = getattr(schedule, "cooldown", None)
    total = 0.0
    for part in (schedule.warmup, cooldown):
        if part is not None and part.unit == "%":
            total += part.value / 100
        elif part is not None and part.unit == length.unit and length.value:
            total += part.value / length.value
    if total > 1:
        both = f"with schedule.cooldown ({cooldown}) " if cooldown is not None else ""
        text = f"{both}longer than length ({length}); shorten the schedule or train longer"
        yield Conflict(("schedule", "warmup"), schedule.warmup, text)


def check_image_size(
    data: ImageDataConfig, model: ImageModelConfig, augmentation: AugmentationConfig
) -> Iterator[Conflict]:
    """Patches and paddings that a side of the images does not allow."""
    if data.size is None:
        return
    if (model.architecture or "").startswith("vit-") and data.size % (model.patch_size or PATCH_SIZE):
        patch_size = model.patch_size or PATCH_SIZE
        yield Conflict(("model", "patch_size"), patch_size, f"must divide data.size ({data.size})")
    if augmentation.padding_mode == "reflect" and augmentation.padding >= data.size:
        text = f"must be less than data.size ({data.size}) with padding_mode: reflect"
        yield Conflict(("augmentation", "padding"), augmentation.padding, text)


def check_image_accelerator(scaling: ScalingConfig) -> Iterator[Conflict]:
    """A type of GPU, asked for without GPUs."""
    if scaling.gpus_per_worker == 0 and scaling.accelerator_type is not None:
        text = "needs a GPU, and scaling.gpus_per_worker is 0; set it to 1 or remove the type"
        yield Conflict(("scaling", "accelerator_type"), scaling.accelerator_type, text)


def check_image_graphs(model: ImageModelConfig, scaling: ScalingConfig) -> Iterator[Conflict]:
    """CUDA graphs where gradients are summed over workers, which nobody has compared with trainings without."""
    if model.cuda_graphs and scaling.workers > 1:
        text = f"is for one worker, and scaling.workers is {scaling.workers}; set model.cuda_graphs: false, or 1 worker"
        yield Conflict(("model", "cuda_graphs"), model.cuda_graphs, text)
