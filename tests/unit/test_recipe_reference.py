"""The reference and the schema say what the models say."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
from recipe_files import BASE, write_recipe

from lowland.platform.recipe import load_recipe, reference
from lowland.platform.recipe.document import parse
from lowland.platform.recipe.model import RECIPES
from lowland.platform.recipe.schema import RecipeSchema
from lowland.trainers.errors import RecipeError

ROOT = Path(__file__).parents[2]


def test_docs_recipes_is_up_to_date():
    written = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert written == reference.markdown(), "run: lowland schema --markdown > docs/recipes.md"


def test_the_schema_is_valid_and_accepts_right_recipes():
    schema = json.loads(reference.json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(parse(BASE, "recipe").data)
    for path in (ROOT / "recipes").rglob("*.yaml"):
        validator.validate(parse(path.read_text(encoding="utf-8"), str(path)).data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("100 steps", "100"),
        ("100 steps", "10 minutes"),
        ("1e-3", "0"),
        ("adamw", "adam"),
        ("name: small", "nam: small"),
    ],
)
def test_the_schema_refuses_wrong_recipes(old, new):
    validator = jsonschema.Draft202012Validator(json.loads(reference.json_schema()))
    assert not validator.is_valid(parse(BASE.replace(old, new), "recipe").data)


@pytest.mark.parametrize(
    ("optimizer", "right"), [("{name: adamw}", True), ("{name: adamw, rate: 1}", False), ("{}", False)]
)
def test_an_optimizer_of_a_rule_may_leave_out_what_all_have(optimizer, right):
    mixed = f"{{name: mixed, lr: 1e-3, rules: [{{match: '*', optimizer: {optimizer}}}]}}"
    recipe = parse(BASE.replace("optimizer:\n  name: adamw\n  lr: 1e-3", f"optimizer: {mixed}"), "recipe").data
    validator = jsonschema.Draft202012Validator(json.loads(reference.json_schema()))
    assert recipe["optimizer"]["name"] == "mixed"
    assert validator.is_valid(recipe) is right


@pytest.mark.parametrize("task", RECIPES)
def test_every_field_has_a_description(task):
    def fields(definition):
        return definition.get("properties", {}).items()

    schema = RecipeSchema(RECIPES[task])
    definitions = {"Recipe": schema.root, **schema.root["$defs"]}
    bare = [
        f"{name}.{field}"
        for name, definition in definitions.items()
        for field, node in fields(definition)
        if not schema.resolve(node).get("description")
    ]
    assert bare == []


def code_blocks(language):
    """The code blocks of docs/recipes.md in a language."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_reference_are_right(tmp_path):
    path = write_recipe(tmp_path, code_blocks("yaml")[0].replace("runs/data/stdlib", "PREPARED"))
    assert load_recipe(path).scaling.workers == 2
    commands = [shlex.split(line) for line in code_blocks("sh")[0].splitlines()]
    assert len(commands) == 2
    for command in commands:
        overrides = [value for flag, value in pairwise(command) if flag == "--set"]
        text = path.read_text().replace("lr: 3e-3", "lr: 3e-3, betas: [0.9, 0.95]")
        (tmp_path / "changed.yaml").write_text(text)
        assert load_recipe(tmp_path / "changed.yaml", overrides).optimizer.lr in (1e-3, 0.1)


def test_the_mistakes_of_the_reference_are_those_that_are_told(tmp_path):
    path = write_recipe(tmp_path, BASE.replace("  lr: 1e-3", "  lr: 1e-3\n  learning_rate: 0.1"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["batch={micro_batch: 8, global_sequences: 12}", "scaling.workers=2"])
    told = [line.rsplit(" = ", 1)[0].split(": ", 1)[1] for line in str(caught.value).splitlines()]
    shown = [line.rsplit(" = ", 1)[0].split(": ", 1)[1] for line in code_blocks("text")[0].splitlines()]
    assert told[0] == shown[0]
    assert told[1].endswith(shown[1])
