"""Recipes: the models, reading them from YAML, and telling the user what is wrong with one."""

from lowland.platform.recipe.load import load_recipe
from lowland.platform.recipe.model import (
    CausalLMRecipe,
    ClusterFields,
    ImageClassificationRecipe,
    Recipe,
    ScalingConfig,
    TrackingConfig,
    read_recipe,
    recipe_class,
)

__all__ = [
    "CausalLMRecipe",
    "ClusterFields",
    "ImageClassificationRecipe",
    "Recipe",
    "ScalingConfig",
    "TrackingConfig",
    "load_recipe",
    "read_recipe",
    "recipe_class",
]
