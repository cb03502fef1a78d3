"""What a training is, as data: pydantic models that are read and checked without torch.

A recipe file maps onto one of the task configurations here (`CausalLMConfig`,
`ImageClassificationConfig`); `lowland.platform`
adds what only a cluster needs (workers, storage, tracking).  Reading a recipe must stay quick, so
nothing in this package imports torch, transformers or pyarrow.
"""

from lowland.trainers.recipe.amounts import Amount, StepSize, Unit
from lowland.trainers.recipe.batch import BatchConfig, ImageBatchConfig
from lowland.trainers.recipe.causal_lm import CausalLMConfig
from lowland.trainers.recipe.checkpoints import CheckpointConfig
from lowland.trainers.recipe.data import PackedTextConfig
from lowland.trainers.recipe.evaluation import EvaluationConfig, ImageEvaluationConfig
from lowland.trainers.recipe.hub import HubDataConfig, is_hub_id
from lowland.trainers.recipe.image_classification import ImageClassificationConfig
from lowland.trainers.recipe.image_data import (
    AugmentationConfig,
    ErasingConfig,
    ImageDataConfig,
    RandAugmentConfig,
    ResizedCropConfig,
    ShapesConfig,
)
from lowland.trainers.recipe.image_model import ImageModelConfig
from lowland.trainers.recipe.measures import MeasuresConfig
from lowland.trainers.recipe.model import LanguageModelConfig
from lowland.trainers.recipe.optimizers import (
    AdamWConfig,
    AdaTAMWConfig,
    MixedConfig,
    OptimizerConfig,
    PlainOptimizer,
    SGDConfig,
)
from lowland.trainers.recipe.schedule import ScheduleConfig
from lowland.trainers.recipe.section import Section
from lowland.trainers.recipe.sharding import ShardingConfig
from lowland.trainers.recipe.train import NonFiniteConfig, TrainConfig

__all__ = [
    "AdaTAMWConfig",
    "AdamWConfig",
    "Amount",
    "AugmentationConfig",
    "BatchConfig",
    "CausalLMConfig",
    "CheckpointConfig",
    "ErasingConfig",
    "EvaluationConfig",
    "HubDataConfig",
    "ImageBatchConfig",
    "ImageClassificationConfig",
    "ImageDataConfig",
    "ImageEvaluationConfig",
    "ImageModelConfig",
    "LanguageModelConfig",
    "MeasuresConfig",
    "MixedConfig",
    "NonFiniteConfig",
    "OptimizerConfig",
    "PackedTextConfig",
    "PlainOptimizer",
    "RandAugmentConfig",
    "ResizedCropConfig",
    "SGDConfig",
    "ScheduleConfig",
    "Section",
    "ShapesConfig",
    "ShardingConfig",
    "StepSize",
    "TrainConfig",
    "Unit",
    "is_hub_id",
]
