"""A recipe: a training and what the cluster must know to run it."""

from typing import Annotated, Literal

from pydantic import Field

from lowland.trainers.recipe import CausalLMConfig, Section

_NAME = "at most 100 letters, digits, `.`, `_` and `-`, the first a letter or a digit"


class ScalingConfig(Section):
    """What each run asks of the Ray cluster."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Worker processes (ranks)."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs per worker: 1, or 0 to train on CPUs."""
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

    uri: str | None = None
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


Recipe = CausalLMRecipe
"""Any recipe; a union told apart by `task` once there are more tasks."""
