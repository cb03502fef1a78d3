"""The optimizers of recipes, one model each; `name` tells them apart.

A new optimizer is a class here, in the union below, and a row in `lowland.optim.methods`.
"""

from typing import Annotated

from pydantic import Field

from lowland.trainers.recipe.optimizers.base import PlainOptimizer
from lowland.trainers.recipe.optimizers.first_order import AdamWConfig, SGDConfig
from lowland.trainers.recipe.optimizers.matrix import AdafactorConfig, MuonConfig
from lowland.trainers.recipe.optimizers.torque import AdaTAMWConfig, TAMConfig

__all__ = [
    "AdaTAMWConfig",
    "AdafactorConfig",
    "AdamWConfig",
    "MuonConfig",
    "OptimizerConfig",
    "PlainOptimizer",
    "SGDConfig",
    "TAMConfig",
]

OptimizerConfig = Annotated[
    AdamWConfig | SGDConfig | TAMConfig | AdaTAMWConfig | AdafactorConfig | MuonConfig, Field(discriminator="name")
]
