"""Mistakes in recipes of image classifiers are told before anything starts, with place, value and way out."""

import random

import pytest

from lowland.platform.recipe import ImageClassificationRecipe, load_recipe
from lowland.platform.recipe.dump import dump
from lowland.platform.search.space import open_space
from lowland.platform.search.start import begin
from lowland.trainers.errors import RecipeError, UserError

BASE = """\
task: image-classification
name: small
length: 3 epochs
model: {architecture: wide-resnet-10-1}
data: {channels: 1}
optimizer: {name: sgd, lr: 0.1}
batch: {micro_batch: 8}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(BASE)
    return file


UNITS = "{name: magnitude_pruning, sparsity: 0.5, structure: units}"
REWOUND = "methods=[{name: magnitude_pruning, sparsity: 0.5, rewind: weights}]"


@pytest.mark.parametrize(
    "other", ["soap", "adafactor", "rotated_adam", "schedule_free_sgd", "tam", "adatamw", "critical_momenta", "mixed"]
)
def test_weight_rewinding_needs_state_of_single_weights(path, other):
    optimizer = f"{{name: {other}, lr: 0.1}}"
    if other == "mixed":
        rules = "[{kinds: [matrices], optimizer: {name: muon}}, {match: '*', optimizer: {name: adamw}}]"
        other, optimizer = "muon", f"{{name: mixed, lr: 0.1, rules: {rules}}}"
    load_recipe(path, [f"optimizer={optimizer}", REWOUND.replace("weights", "learning_rate")])
    message = f"that of {other} is not all of single weights: set rewind: learning_rate, or take one of adamw, sgd"
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, [f"optimizer={optimizer}", REWOUND])


def test_weight_rewinding_goes_with_optimizers_of_single_weights(path):
    custom = "{name: custom, lr: 0.1, target: 'torch.optim:Adamax', sees: elements}"
    mixed = "{name: mixed, lr: 0.1, rules: [{match: '*', optimizer: {name: lion}}]}"
    for optimizer in ("{name: adamw, lr: 0.1}", custom, mixed):
        load_recipe(path, [f"optimizer={optimizer}", REWOUND])
    with pytest.raises(RecipeError, match="that of custom is not all of single weights"):
        load_recipe(path, [f"optimizer={custom.replace('elements', 'tensors')}", REWOUND])


def test_the_task_decides_what_the_sections_are(path, tmp_path):
    recipe = load_recipe(path)
    assert isinstance(recipe, ImageClassificationRecipe)
    assert (recipe.data.path, recipe.batch.micro_batch, recipe.batch.max_grad_norm) == ("digits", 8, None)
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=vision"], "task = vision: must be one of causal-lm, image-classification"),
        (["model.architecture=resnet19"], "model.architecture = resnet19: must be one of resnet18-cifar"),
        (["batch.global_sequences=16"], "batch.global_sequences = 16: unknown field; nearest: global_images"),
        (
            ["batch.global_images=20", "scaling.workers=2"],
            "batch.global_images = 20: must be a multiple of batch.micro_batch (8) x scaling.workers (2) = 16; "
            "nearest: 16 or 32",
        ),
        (
            ["batch.global_images=32", "scaling.workers=2", "model.batch_norm=global"],
            "model.batch_norm = global: needs a step in one pass, and it is 2",
        ),
        (["data.path=./nowhere"], "data.path = ./nowhere: no such file or folder; give Parquet files"),
        (["data.group_column=side"], "data.group_column = side: digits have no groups; remove it"),
        (["data.path=shapes", "data.group_column=side"], "the groups of shapes are group or ground: name one"),
        (
            ["methods=[{name: cobalt, path: nowhere}]"],
            "methods.0.path = nowhere: no config.json there; cobalt.path is the",
        ),
        (["methods=[{name: cobalt, concepts: 1}]"], "concepts = 1: must be a whole number at least 2"),
        (["methods=[{name: cobalt, strength: 2}]"], "strength = 2: must be a number at least 0 and at most 1"),
        (["methods=[{name: cobalt, start: 5 minutes}]"], "the unit must be one of %, steps, epochs"),
        (
            [f"methods=[{UNITS[:-1]}, kinds: [head]}}]"],
            "methods.0: kinds are of structure: weights; remove them",
        ),
        ([f"methods=[{UNITS}, {{name: demp}}]"], "and demp take out the same units: remove one, or set structure"),
        (
            [f"methods=[{UNITS}, {{name: weight_balancing, train: classifier}}]"],
            "structure: units takes out what weight_balancing.train: classifier freezes: remove one",
        ),
        (["length=1B tokens"], "length: 1000000000 tokens: images have no tokens"),
        (
            ["schedule={name: wsd, warmup: 2 epochs}"],
            "schedule.warmup = 2 epochs: the unit must be one of %, steps, tokens, not epochs",
        ),
        (
            ["schedule={name: wsd, warmup: 90%}"],
            "schedule.warmup = 90%: with schedule.cooldown (20%) longer than length",
        ),
        (
            ["model={architecture: vit-tiny, patch_size: 3}", "data.size=8"],
            "model.patch_size = 3: must divide data.size (8)",
        ),
        (["model.timm_arguments={stem_width: 8}"], "timm_arguments are for the architectures timm/…; remove them"),
        (["scaling.accelerator_type=H100"], "scaling.accelerator_type = H100: needs a GPU"),
        (
            ["model.compile=true", "model.cuda_graphs=true", "sharding={engine: torch}", "scaling.workers=2"],
            "model.cuda_graphs = true: is for one worker, and scaling.workers is 2; set",
        ),
        (
            ["checkpoints.metric=eval/acuracy"],
            "checkpoints.metric = eval/acuracy: must be one of eval/loss, eval/accuracy, eval/top5_accuracy",
        ),
        (["model={path: ./none}"], "model.path = ./none: no such folder"),
        (["augmentation.randaugment.magnitude=31"], "augmentation.randaugment.magnitude = 31: must be a whole number"),
    ],
)
def test_mistakes(path, overrides, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert message in str(caught.value)


def test_timm_is_asked_for_where_it_is_not_installed(path, monkeypatch):
    monkeypatch.setattr("lowland.platform.recipe.image_checks.find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"model.architecture = timm/resnet18: needs timm: pip install 'lowland\[timm\]'"
    ):
        load_recipe(path, ["model.architecture=timm/resnet18"])


@pytest.mark.parametrize("names", [["sgd", "sam"], ["auto"]])
def test_searches_change_recipes_of_images(path, names):
    space = open_space(names, load_recipe(path))
    tried = space.apply(space.draw(random.Random(0)))
    assert isinstance(tried, ImageClassificationRecipe)
    assert "optimizer.lr" in space.distributions()
    assert ("log2 batch.accumulation" in space.distributions()) == (names == ["auto"])


def test_searches_refuse_processes_that_need_cpus_beside_their_trainings(path, tmp_path):
    recipe = load_recipe(path, ["data.reader=ray", f"storage={tmp_path}/runs"])
    with pytest.raises(UserError, match=r"data.reader: ray: trainings of a search fill .*set data.reader: local"):
        begin(recipe, ["sgd"], trials=2)


def test_fields_of_images_are_none_of_language_models(tmp_path):
    (tmp_path / "recipe.yaml").write_text(BASE.replace("task: image-classification\n", ""))
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert "model.architecture = wide-resnet-10-1: unknown field" in str(caught.value)
