"""The recipe of an image classifier."""

from typing import Literal

from pydantic import model_validator

from lowland.trainers.recipe.amounts import Amount
from lowland.trainers.recipe.batch import ImageBatchConfig
from lowland.trainers.recipe.evaluation import ImageEvaluationConfig
from lowland.trainers.recipe.image_data import AugmentationConfig, ImageDataConfig
from lowland.trainers.recipe.image_model import ImageModelConfig
from lowland.trainers.recipe.methods import MethodConfig, require_halves, require_possible
from lowland.trainers.recipe.train import TrainConfig


class ImageClassificationConfig(TrainConfig):
    """Training of an image classifier."""

    task: Literal["image-classification"]
    """Which class an image is of."""
    model: ImageModelConfig
    """The classifier."""
    data: ImageDataConfig = ImageDataConfig()
    """The images and their classes."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """What is done to training images and labels."""
    batch: ImageBatchConfig
    """The global batch and its cut."""
    evaluation: ImageEvaluationConfig = ImageEvaluationConfig()
    """When and on how much to evaluate."""
    methods: tuple[MethodConfig, ...] = ()
    """Training methods, applied in this order; `docs/methods.md` says what each is."""

    @model_validator(mode="after")
    def _no_tokens(self) -> "ImageClassificationConfig":
        ema = self.optimizer.ema
        amounts: dict[str, Amount | None] = {
            "length": self.length,
            "schedule.warmup": self.schedule.warmup,
            "schedule.cooldown": getattr(self.schedule, "cooldown", None),
            "evaluation.every": self.evaluation.every,
            "measures.every": self.measures.every if self.measures is not None else None,
            "optimizer.ema.half_life": ema.half_life if ema is not None else None,
        }
        for name, amount in amounts.items():
            if amount is not None and amount.unit == "tokens":
                raise ValueError(f"{name}: {amount}: images have no tokens; give it in another unit, such as steps")
        return self

    @model_validator(mode="after")
    def _possible(self) -> "ImageClassificationConfig":
        if self.model.batch_norm == "global" and (self.batch.accumulation or 1) > 1:
            raise ValueError(
                f"model.batch_norm: global needs all images of a step in one pass, but batch.accumulation is "
                f"{self.batch.accumulation}: set it to 1 with a larger micro_batch, or batch_norm: micro_batch"
            )
        diloco = self.optimizer.diloco
        if self.model.batch_norm == "global" and diloco is not None and diloco.groups > 1:
            raise ValueError(
                f"model.batch_norm: global is over all workers, but optimizer.diloco.groups: {diloco.groups} lets "
                "groups of them train apart: set batch_norm: micro_batch, or groups: 1"
            )
        if self.model.compile and self.sharding.zero_stage == 3:
            raise ValueError("model.compile: not at sharding.stage 3, whose hooks cut the network into pieces")
        return self

    @model_validator(mode="after")
    def _graphs_possible(self) -> "ImageClassificationConfig":
        """A graph's results lie where the next run of it writes; only a plain step is done with them by then."""
        if not self.model.cuda_graphs:
            return self
        batch, needs = self.batch, "model.cuda_graphs: true needs"
        if not self.model.compile:
            raise ValueError(f"{needs} model.compile: true, whose kernels it records")
        if self.sharding.engine != "torch":
            raise ValueError(f"{needs} sharding.engine: torch, since DeepSpeed puts gradients where it wants them")
        if (batch.accumulation or 1) > 1 or batch.global_images is not None:
            raise ValueError(
                f"{needs} one pass a step: remove batch.{'accumulation' if batch.accumulation else 'global_images'}"
            )
        if self.measures is not None:
            raise ValueError(f"{needs} a training without measures, which look at what it overwrites: remove them")
        return self

    @model_validator(mode="after")
    def _measures_possible(self) -> "ImageClassificationConfig":
        """Measures are taken on training batches, whose mixed images have neither one label nor one group."""
        mixed = next((name for name in ("mixup", "cutmix") if getattr(self.augmentation, name) > 0), None)
        names = self.measures.names if self.measures is not None else ()
        measure = next((name for name in names if name in ("difficulty", "groups")), None)
        if mixed is not None and measure is not None:
            raise ValueError(
                f"measures.names: {measure} needs images of one label each, which augmentation.{mixed} mixes: remove "
                f"{measure}, or set {mixed}: 0"
            )
        return self

    @model_validator(mode="after")
    def _methods_possible(self) -> "ImageClassificationConfig":
        require_possible(
            self.methods,
            optimizer=self.optimizer,
            sharding=self.sharding,
            group_column=self.data.group_column,
            compiled=self.model.compile,
        )
        require_halves(
            self.methods,
            batch=self.batch,
            augmentation=self.augmentation,
            measures=self.measures.names if self.measures is not None else (),
            zero_stage=self.sharding.zero_stage,
        )
        return self
