"""The optimizers of recipes, one model each; `name` tells them apart.

A new optimizer is a class here, in the union below, and a row in `lowland.optim.methods`.
"""

from typing import Annotated

from pydantic import Field

from lowland.trainers.recipe.optimizers.base import PlainOptimizer
from lowland.trainers.recipe.optimizers.critical import CriticalGradientsConfig, CriticalMomentaConfig
from lowland.trainers.recipe.optimizers.custom import CustomConfig
from lowland.trainers.recipe.optimizers.first_order import (
    AdamWConfig,
    LionConfig,
    ScheduleFreeAdamWConfig,
    ScheduleFreeSGDConfig,
    SGDConfig,
)
from lowland.trainers.recipe.optimizers.matrix import AdafactorConfig, MuonConfig, RotatedAdamConfig, SOAPConfig
from lowland.trainers.recipe.optimizers.mixed import MixedConfig, Rule
from lowland.trainers.recipe.optimizers.torque import AdaTAMWConfig, TAMConfig

__all__ = [
    "AdaTAMWConfig",
    "AdafactorConfig",
    "AdamWConfig",
    "CriticalGradientsConfig",
    "CriticalMomentaConfig",
    "CustomConfig",
    "LionConfig",
    "MixedConfig",
    "MuonConfig",
    "OptimizerConfig",
    "PlainOptimizer",
    "RotatedAdamConfig",
    "Rule",
    "SGDConfig",
    "SOAPConfig",
    "ScheduleFreeAdamWConfig",
    "ScheduleFreeSGDConfig",
    "SingleOptimizer",
    "TAMConfig",
]

SingleOptimizer = Annotated[
    CustomConfig
    | AdamWConfig
    | SGDConfig
    | LionConfig
    | ScheduleFreeAdamWConfig
    | ScheduleFreeSGDConfig
    | TAMConfig
    | AdaTAMWConfig
    | CriticalMomentaConfig
    | CriticalGradientsConfig
    | AdafactorConfig
    | MuonConfig
    | SOAPConfig
    | RotatedAdamConfig,
    Field(discriminator="name"),
]

Rule.model_rebuild(_types_namespace={"SingleOptimizer": SingleOptimizer})
MixedConfig.model_rebuild()
OptimizerConfig = Annotated[SingleOptimizer | MixedConfig, Field(discriminator="name")]
