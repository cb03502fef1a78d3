"""Recipes: the models, reading them from YAML, and telling the user what is wrong with one."""

from lowland.platform.recipe.load import load_recipe
from lowland.platform.recipe.model import (
    CausalLMRecipe,
    ClusterFields,
    Recipe,
    ScalingConfig,
    TrackingConfig,
)

__all__ = [
    "CausalLMRecipe",
    "ClusterFields",
    "Recipe",
    "ScalingConfig",
    "TrackingConfig",
    "load_recipe",
]
