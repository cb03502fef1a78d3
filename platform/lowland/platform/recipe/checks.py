"""Mistakes between fields that are each right, as far as they show without a cluster.

Each check is a generator that takes the recipe's sections it needs, by their names; it runs when
those are valid, whatever else is wrong.  A conflict names every field that is part of it, and the fix.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from lowland.platform.recipe.conflict import Conflict
from lowland.platform.recipe.image_checks import (
    IMAGE_METRICS,
    check_concept_network,
    check_image_accelerator,
    check_image_batch,
    check_image_data,
    check_image_graphs,
    check_image_hub,
    check_image_schedule,
    check_image_size,
    check_timm,
)
from lowland.platform.recipe.mistakes import nearest
from lowland.platform.recipe.model import ScalingConfig
from lowland.platform.recipe.text_checks import (
    check_attention,
    check_batch,
    check_data,
    check_gpus,
    check_held_out,
    check_positions,
    check_schedule,
    check_vocabulary,
)
from lowland.trainers.recipe import (
    Amount,
    CheckpointConfig,
    EvaluationConfig,
    ImageEvaluationConfig,
    ImageModelConfig,
    LanguageModelConfig,
    MeasuresConfig,
    MixedConfig,
    OptimizerConfig,
    ScheduleConfig,
    SGDConfig,
    ShardingConfig,
    is_hub_id,
)

_METRICS = {
    "causal-lm": ("eval/loss", "eval/perplexity", "eval/bits_per_byte"),
    "image-classification": IMAGE_METRICS,
}


def find_conflicts(sections: Mapping[str, Any]) -> list[Conflict]:
    """The conflicts between the given sections; checks that need another one are left out."""
    found = list[Conflict]()
    for check in (*COMMON, *BY_TASK.get(str(sections.get("task")), ())):
        names = inspect.signature(check).parameters
        if all(name in sections for name in names):
            found += check(**{name: sections[name] for name in names})
    return found


def check_amounts(
    length: Amount, evaluation: EvaluationConfig | ImageEvaluationConfig, checkpoints: CheckpointConfig
) -> Iterator[Conflict]:
    """A training of no length, and intervals of none."""
    if length.value == 0:
        yield Conflict(("length",), length, "must be more than 0")
    for name, every in (("evaluation", evaluation.every), ("checkpoints", checkpoints.every)):
        if every is not None and every.value == 0:
            yield Conflict((name, "every"), every, "must be more than 0, or null for the end only")


def check_model_folder(model: LanguageModelConfig | ImageModelConfig) -> Iterator[Conflict]:
    """A model folder that is not there, or is none."""
    if model.path is None:
        return
    folder = FilePath(model.path)
    if folder.is_dir() and not (folder / "config.json").exists():
        yield Conflict(("model", "path"), model.path, "the folder has no config.json")
    elif not folder.is_dir() and not is_hub_id(model.path):
        yield Conflict(("model", "path"), model.path, "no such folder; a Hugging Face hub id is written owner/name")


def check_gpu_share(scaling: ScalingConfig) -> Iterator[Conflict]:
    """Workers that would meet on a GPU, where NCCL takes two for a mistake."""
    if 0 < scaling.gpus_per_worker < 1 and scaling.workers > 1:
        text = f"a part of a GPU is for trainings of one worker, and scaling.workers is {scaling.workers}; set it to 1"
        yield Conflict(("scaling", "gpus_per_worker"), scaling.gpus_per_worker, text)


def check_checkpoints(
    task: str, checkpoints: CheckpointConfig, evaluation: EvaluationConfig | ImageEvaluationConfig
) -> Iterator[Conflict]:
    """Checkpoints that follow evaluations which never come."""
    metrics = _METRICS[task]
    if checkpoints.metric not in metrics:
        hint = "".join(f"; nearest: {name}" for name in nearest(checkpoints.metric, metrics)[:1])
        text = f"must be one of {', '.join(metrics)}{hint}"
        yield Conflict(("checkpoints", "metric"), checkpoints.metric, text)
    if evaluation.every is not None:
        return
    never = "needs evaluations during the training, and evaluation.every is null; set it, or"
    if checkpoints.every is not None and checkpoints.every.unit == "evaluations":
        yield Conflict(("checkpoints", "every"), checkpoints.every, f"{never} give checkpoints.every in steps")
    if checkpoints.keep_best > 1:
        yield Conflict(("checkpoints", "keep_best"), checkpoints.keep_best, f"{never} keep at most 1")


def check_measures(
    measures: MeasuresConfig | None, model: LanguageModelConfig | ImageModelConfig
) -> Iterator[Conflict]:
    """Measures that are never due, or that a model in bf16 cannot have."""
    if measures is None:
        return
    if measures.every.value == 0:
        yield Conflict(("measures", "every"), measures.every, "must be more than 0")
    if model.dtype == "bfloat16" and (rounded := measures.rounded_in_bf16()):
        yield Conflict(("measures", "names"), rounded, measures.NEEDS_FP32)


def check_optimizer(optimizer: OptimizerConfig) -> Iterator[Conflict]:
    """Nesterov momentum without momentum."""
    if isinstance(optimizer, SGDConfig) and optimizer.nesterov and optimizer.momentum == 0:
        text = "needs momentum, and optimizer.momentum is 0; remove one of them"
        yield Conflict(("optimizer", "nesterov"), optimizer.nesterov, text)


def check_schedule_free(optimizer: OptimizerConfig, schedule: ScheduleConfig) -> Iterator[Conflict]:
    """A rate that decays, where an average takes the place of the decay."""
    parts = [rule.optimizer for rule in optimizer.rules] if isinstance(optimizer, MixedConfig) else [optimizer]
    name = next((part.name for part in parts if part.name.startswith("schedule_free")), None)
    if name is not None and schedule.name != "constant":
        text = f"{name} averages instead of letting the rate decay; set schedule.name: constant, with a warm-up"
        yield Conflict(("schedule", "name"), schedule.name, text)


def check_worker_groups(
    optimizer: OptimizerConfig, sharding: ShardingConfig, scaling: ScalingConfig
) -> Iterator[Conflict]:
    """Worker groups that cannot train apart."""
    if optimizer.diloco is None or optimizer.diloco.groups == 1:
        return
    path, groups = ("optimizer", "diloco", "groups"), optimizer.diloco.groups
    if sharding.engine != "torch":
        text = (
            f"sharding.engine ({sharding.engine}) averages gradients over all workers; set sharding.engine: torch, or "
            "groups: 1, which is an outer step around all workers together"
        )
        yield Conflict(path, groups, text)
    if scaling.workers % groups:
        yield Conflict(path, groups, f"must divide scaling.workers ({scaling.workers})")
    for name in ("sam", "lookbehind"):
        if getattr(optimizer, name) is not None:
            yield Conflict(path, groups, f"optimizer.{name} needs the gradients of all workers; remove it, or groups")


def check_outer_steps(optimizer: OptimizerConfig, length: Amount) -> Iterator[Conflict]:
    """Last steps that no outer step takes into the model."""
    if optimizer.diloco is None or length.unit != "steps" or length.value % optimizer.diloco.every == 0:
        return
    text = f"must be a multiple of optimizer.diloco.every ({optimizer.diloco.every}): later steps would not count"
    yield Conflict(("length",), length, text)


Check = Callable[..., Iterator[Conflict]]

COMMON: tuple[Check, ...] = (
    check_amounts,
    check_gpu_share,
    check_model_folder,
    check_checkpoints,
    check_measures,
    check_optimizer,
    check_schedule_free,
    check_worker_groups,
    check_outer_steps,
)
"""Checks of every recipe."""
BY_TASK: dict[str, tuple[Check, ...]] = {
    "causal-lm": (
        check_schedule,
        check_batch,
        check_data,
        check_held_out,
        check_positions,
        check_vocabulary,
        check_attention,
        check_gpus,
    ),
    "image-classification": (
        check_image_data,
        check_image_hub,
        check_concept_network,
        check_image_batch,
        check_image_schedule,
        check_image_size,
        check_timm,
        check_image_accelerator,
        check_image_graphs,
    ),
}
"""Checks of a task's recipes besides."""
