"""Measures that a recipe cannot have are told before anything starts."""

import pytest
from pydantic import ValidationError
from recipe_files import BASE, write_recipe

from lowland.platform.recipe import load_recipe
from lowland.trainers.errors import RecipeError
from lowland.trainers.recipe import ImageClassificationConfig


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("measures={names: [sharpness], every: 0 steps}", "measures.every = 0 steps: must be more than 0"),
        ("model.dtype=bfloat16", "measures.names = sharpness: looks at displacements of weights that bf16 rounds away"),
        ("measures.names.1=sharpnes", "measures.names.1 = sharpnes: must be one of"),
        ("measures.rho=0", "measures.rho = 0: must be a number greater than 0"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, override, message):
    text = BASE + "measures: {names: [ntk, sharpness], every: 5 steps}\n"
    path = write_recipe(tmp_path, text)
    assert load_recipe(path).measures.names == ("ntk", "sharpness")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert message in str(caught.value)


IMAGES = {
    "task": "image-classification",
    "length": "8 steps",
    "model": {"architecture": "wide-resnet-10-1"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "batch": {"micro_batch": 8},
}


@pytest.mark.parametrize("measure", ["difficulty", "groups"])
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_images_have_no_one_label(measure, mixing):
    recipe = {**IMAGES, "augmentation": {mixing: 0.2}}
    ImageClassificationConfig.model_validate({**recipe, "measures": {"names": ["representation"]}})
    with pytest.raises(ValidationError, match=rf"{measure} needs images of one label .* or set {mixing}: 0"):
        ImageClassificationConfig.model_validate({**recipe, "measures": {"names": ["ntk", measure]}})


def test_images_have_no_tokens_to_measure_by():
    recipe = IMAGES
    ImageClassificationConfig.model_validate({**recipe, "measures": {"names": ["ntk"], "every": "1 epochs"}})
    with pytest.raises(ValidationError, match=r"measures\.every: 5 tokens: images have no tokens"):
        ImageClassificationConfig.model_validate({**recipe, "measures": {"names": ["ntk"], "every": "5 tokens"}})
