"""Every recipe in recipes/ loads and validates on data prepared as its comment says."""

from pathlib import Path

import pytest
from recipe_files import data_overrides, write_manifest

from lowland.platform.recipe import load_recipe, read_recipe
from lowland.platform.recipe.document import read_document

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads(path, tmp_path):
    config = read_document(path).data["model"].get("config", {})
    prepared = write_manifest(tmp_path / "prepared", sequence_length=config.get("max_position_embeddings", 1024))
    recipe = load_recipe(path, data_overrides(path, prepared))
    assert recipe.name == path.stem
    # As workers get it, with every default set.
    assert read_recipe(recipe.model_dump(mode="json")) == recipe
