"""A recipe: a training and what the cluster must know to run it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PlainSerializer, Tag

from lowland.platform.urls import redact
from lowland.trainers.recipe import CausalLMConfig, ImageClassificationConfig, Section

_NAME = "at most 100 letters, digits, `.`, `_` and `-`, the first a letter or a digit"


class ScalingConfig(Section):
    """What each run asks of the Ray cluster."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Worker processes (ranks)."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = 0
    """GPUs per worker: 1, or 0 to train on CPUs; with one worker also a part, so that trainings share a GPU."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPU cores per worker."""
    accelerator_type: str | None = None
    """Ray accelerator type that workers must run on, for example H100."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places workers on nodes: together or apart, if possible or strictly."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """How often a run whose worker died restarts from its last checkpoint; -1 is without limit."""
    start_timeout: Annotated[float, Field(gt=0)] = 300
    """Seconds to wait for all workers to start."""


class TrackingConfig(Section):
    """Where MLflow records the run."""

    uri: Annotated[str, PlainSerializer(redact)] | None = None
    """MLflow tracking URI; null takes MLFLOW_TRACKING_URI, else sqlite in mlflow.db beside the run folder."""
    experiment: str = "lowland"
    """MLflow experiment."""
    tags: dict[str, str] = Field(default={})
    """Tags of the run besides those lowland sets."""
    system_metrics: bool = True
    """Record CPU, memory and GPU use of every node."""
    log_model: bool = True
    """Log the exported model as an MLflow model."""
    flush_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Seconds between two batches of metrics sent to the tracking server."""


class ClusterFields(Section):
    """What a recipe holds besides the training itself."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
            json_schema_extra={
                "allowed": "at most 100 letters, digits, `.`, `_` and `-`, the first a letter or a digit"
            },
        ),
    ]
    """Name of the run and of its folder below `storage`."""
    storage: str = "runs"
    """Folder or URI (s3://, gs://, file://) that holds run folders; every node must reach it."""
    scaling: ScalingConfig = ScalingConfig()
    """Workers and what each needs."""
    tracking: TrackingConfig = TrackingConfig()
    """Where MLflow records the run."""


class CausalLMRecipe(ClusterFields, CausalLMConfig):
    """The recipe of a causal language model."""


class ImageClassificationRecipe(ClusterFields, ImageClassificationConfig):
    """The recipe of an image classifier."""


RECIPES: dict[str, type[CausalLMRecipe] | type[ImageClassificationRecipe]] = {
    "causal-lm": CausalLMRecipe,
    "image-classification": ImageClassificationRecipe,
}
"""The recipes by their `task`; one that says none is of the first."""


def task_of(data: Any) -> str:
    """The task that a recipe names, as a mapping or a model; maybe one that there is not."""
    task = data.get("task", "causal-lm") if isinstance(data, Mapping) else getattr(data, "task", "causal-lm")
    return str(task)


def recipe_class(data: Any) -> type[CausalLMRecipe] | type[ImageClassificationRecipe]:
    """The class of the recipe that data make; of an unknown task that of language models, which refuses it."""
    return RECIPES.get(task_of(data), CausalLMRecipe)


def read_recipe(data: Any) -> "Recipe":
    """The recipe that data make.

    Raises:
        pydantic.ValidationError: they make none.
    """
    return recipe_class(data).model_validate(data)


Recipe = Annotated[
    Annotated[CausalLMRecipe, Tag("causal-lm")] | Annotated[ImageClassificationRecipe, Tag("image-classification")],
    Discriminator(task_of),
]
"""Any recipe, told apart by `task`."""
