"""What every task's training has in common."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.amounts import TrainingLength
from lowland.trainers.recipe.batch import BatchConfig, ImageBatchConfig
from lowland.trainers.recipe.checkpoints import CheckpointConfig
from lowland.trainers.recipe.evaluation import EvaluationConfig, ImageEvaluationConfig
from lowland.trainers.recipe.measures import MeasuresConfig
from lowland.trainers.recipe.optimizers import OptimizerConfig
from lowland.trainers.recipe.schedule import ConstantSchedule, ScheduleConfig
from lowland.trainers.recipe.section import Section
from lowland.trainers.recipe.sharding import ShardingConfig


class NonFiniteConfig(Section):
    """What happens when a loss or gradient is not finite; no weight ever changes by it."""

    policy: Literal["stop", "skip"] = "stop"
    """`stop` ends the run with the step, the batch and the last good checkpoint; `skip` counts and goes on."""
    max_consecutive: Annotated[int, Field(ge=1)] = 10
    """Skipped steps in a row after which `skip` stops as well."""


class TrainConfig(Section):
    """A training, whatever its task."""

    task: str
    """What is trained."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, data order and dropout."""
    length: TrainingLength
    """How long to train: steps, tokens or epochs."""
    optimizer: OptimizerConfig
    """The optimizer and its own fields."""
    schedule: ScheduleConfig = ConstantSchedule(name="constant")
    """The learning-rate schedule."""
    batch: BatchConfig | ImageBatchConfig
    """The global batch and its cut."""
    sharding: ShardingConfig = ShardingConfig()
    """Engine, ZeRO stage and offload."""
    evaluation: EvaluationConfig | ImageEvaluationConfig = EvaluationConfig()
    """When and on how much to evaluate."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """When to save and what to keep."""
    nonfinite: NonFiniteConfig = NonFiniteConfig()
    """What to do about a loss or gradient that is not finite."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two recorded training metrics."""
    measures: MeasuresConfig | None = None
    """What is measured besides; null measures nothing."""

    @model_validator(mode="after")
    def _own_gradients(self) -> "TrainConfig":
        sam, stage = self.optimizer.sam, self.sharding.zero_stage
        if sam is not None and sam.per_rank and stage > 0:
            raise ValueError(
                f"optimizer.sam.per_rank: true perturbs each rank's own whole weights, which sharding.stage: {stage} "
                "does not leave it: set sharding.stage: 0 or sharding.engine: torch, or optimizer.sam.per_rank: false"
            )
        return self

    @model_validator(mode="after")
    def _measurable(self) -> "TrainConfig":
        if self.measures is None:
            return self
        if "ntk" in self.measures.names and self.sharding.zero_stage == 3:
            raise ValueError(
                "measures.names: ntk needs whole weights on each worker, which sharding.stage: 3 does not leave it: "
                "remove it, or set sharding.stage to at most 2"
            )
        diloco, sam = self.optimizer.diloco, self.optimizer.sam
        if diloco is not None and diloco.groups > 1:
            raise ValueError(
                f"measures: with optimizer.diloco.groups: {diloco.groups} workers differ in weights and gradients, and "
                "no measure holds for all: remove measures, or set groups: 1"
            )
        if sam is not None and sam.per_rank:
            raise ValueError(
                "measures: optimizer.sam.per_rank: true keeps gradients apart, and measures are of their mean: "
                "remove measures, or set per_rank: false"
            )
        return self
