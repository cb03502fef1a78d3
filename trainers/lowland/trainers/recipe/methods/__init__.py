"""The training methods of recipes, one model each; `name` tells them apart.

A new method is a class here, in the union below, and a line in `lowland.trainers.methods.build`.
"""

from typing import Annotated

from pydantic import Field

from lowland.trainers.recipe.methods.base import MethodSection
from lowland.trainers.recipe.methods.constraints import (
    AdamAscentConfig,
    AscentConfig,
    CEAGConfig,
    ConstraintConfig,
    ConstraintsConfig,
    MultipliersConfig,
    NuPIConfig,
)
from lowland.trainers.recipe.methods.halves import cross_split, require_halves
from lowland.trainers.recipe.methods.labels import CrossSplitConfig, LabelNoiseConfig
from lowland.trainers.recipe.methods.losses import ConFIGConfig, IGBConfig
from lowland.trainers.recipe.methods.pruning import DemPConfig, MagnitudePruningConfig, OPTINConfig
from lowland.trainers.recipe.methods.robustness import (
    CoBalTConfig,
    FixedETFConfig,
    IRMConfig,
    RationaleInvarianceConfig,
    SpectralDecouplingConfig,
    SpectralRiskConfig,
    VRExConfig,
    WeightBalancingConfig,
)
from lowland.trainers.recipe.methods.together import require_possible

__all__ = [
    "AdamAscentConfig",
    "AscentConfig",
    "CEAGConfig",
    "CoBalTConfig",
    "ConFIGConfig",
    "ConstraintConfig",
    "ConstraintsConfig",
    "CrossSplitConfig",
    "DemPConfig",
    "FixedETFConfig",
    "IGBConfig",
    "IRMConfig",
    "LabelNoiseConfig",
    "MagnitudePruningConfig",
    "MethodConfig",
    "MethodSection",
    "MultipliersConfig",
    "NuPIConfig",
    "OPTINConfig",
    "RationaleInvarianceConfig",
    "SpectralDecouplingConfig",
    "SpectralRiskConfig",
    "VRExConfig",
    "WeightBalancingConfig",
    "cross_split",
    "require_halves",
    "require_possible",
]

MethodConfig = Annotated[
    SpectralDecouplingConfig
    | VRExConfig
    | IRMConfig
    | FixedETFConfig
    | WeightBalancingConfig
    | CoBalTConfig
    | SpectralRiskConfig
    | RationaleInvarianceConfig
    | LabelNoiseConfig
    | CrossSplitConfig
    | ConstraintsConfig
    | CEAGConfig
    | MagnitudePruningConfig
    | DemPConfig
    | OPTINConfig
    | IGBConfig
    | ConFIGConfig,
    Field(discriminator="name"),
]
