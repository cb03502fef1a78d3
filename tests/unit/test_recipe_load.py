"""Every class of mistake has one clear message, and all of them are told at once."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter
from recipe_files import BASE, write_recipe

from lowland.platform.recipe import load_recipe
from lowland.trainers.errors import RecipeError
from lowland.trainers.recipe import AdamWConfig, Amount, OptimizerConfig, SGDConfig, Unit

MODELS = [model["properties"] for model in TypeAdapter(OptimizerConfig).json_schema()["$defs"].values()]
NAMES = ", ".join(sorted(fields["name"]["const"] for fields in MODELS if {"name", "lr"} <= fields.keys()))
UNITS = ", ".join(get_args(Unit))
HEAVY = ("torch", "ray", "mlflow", "transformers", "pyarrow", "numpy")


def mistakes(path: Path, overrides: tuple[str, ...] = ()) -> list[str]:
    """The lines of the error, with the folder of the recipe left out."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(f"{path.parent}{os.sep}", "").splitlines()


def test_a_right_recipe_loads(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    assert recipe.length == Amount(100, "steps")
    assert isinstance(recipe.optimizer, AdamWConfig)
    assert recipe.optimizer.lr == 1e-3


ONE_MISTAKE = [
    ("  lr: 1e-3", "  lr: 1e-3\n  learning_rate: 0.1",
     "recipe.yaml:9: optimizer.learning_rate = 0.1: unknown field of optimizer adamw; nearest: lr"),
    ("  lr: 1e-3", "  lr: 1e-3\n  bettas: [0.9, 0.99]",
     "recipe.yaml:9: optimizer.bettas = [0.9, 0.99]: unknown field of optimizer adamw; nearest: betas"),
    ("name: small", "name: small\nlenght: 3 steps",
     "recipe.yaml:2: lenght = 3 steps: unknown field; nearest: length"),
    ("name: small", "name: small\nworkers: 4",
     "recipe.yaml:2: workers = 4: unknown field; there is scaling.workers"),
    ("{micro_batch: 2}", "{micro_batch: 2, xyz: 1}",
     "recipe.yaml:9: batch.xyz = 1: unknown field; the fields are micro_batch, accumulation, global_sequences, "
     "global_tokens, max_grad_norm"),
    ("  lr: 1e-3", "  lr: -1e-3",
     "recipe.yaml:8: optimizer.lr = -0.001: must be a number greater than 0"),
    ("  lr: 1e-3", "  lr: fast",
     "recipe.yaml:8: optimizer.lr = fast: must be a number greater than 0"),
    ("  lr: 1e-3", "  lr: .inf",
     "recipe.yaml:8: optimizer.lr = inf: must be a number greater than 0"),
    ("  lr: 1e-3", "  lr:",
     "recipe.yaml:8: optimizer.lr = null: must be a number greater than 0"),
    ("  lr: 1e-3\n", "",
     "recipe.yaml:6: optimizer.lr: missing: give a number greater than 0"),
    ("  name: adamw\n", "",
     f"recipe.yaml:6: optimizer.name: missing: give one of {NAMES}"),
    ("length: 100 steps\n", "",
     "recipe.yaml:1: length: missing: give a number and a unit (steps, tokens, epochs)"),
    ("100 steps", "100",
     "recipe.yaml:2: length = 100: write a number and a unit (steps, tokens, epochs), for example '100 steps'"),
    ("100 steps", "100 seconds",
     f"recipe.yaml:2: length = 100 seconds: unknown unit 'seconds'; the units are {UNITS}"),
    ("100 steps", "10 minutes",
     "recipe.yaml:2: length = 10 minutes: the unit must be one of steps, tokens, epochs, not minutes"),
    ("{micro_batch: 2}", "{micro_batch: 2.5}",
     "recipe.yaml:9: batch.micro_batch = 2.5: must be a whole number at least 1"),
    ("{micro_batch: 2}", "{micro_batch: 2, accumulation: 0}",
     "recipe.yaml:9: batch.accumulation = 0: must be a whole number at least 1, or null"),
    ("{micro_batch: 2}", "{micro_batch: 2, accumulation: 2, global_tokens: 64}",
     "recipe.yaml:9: batch: give one of accumulation, global_sequences, global_tokens; accumulation and global_tokens "
     "are given"),
    ("{micro_batch: 2}", "3",
     "recipe.yaml:9: batch = 3: must be a section with the fields micro_batch, accumulation, global_sequences, "
     "global_tokens, max_grad_norm"),
    ("  config:", "  dtype: float16\n  config:",
     "recipe.yaml:4: model.dtype = float16: must be one of float32, bfloat16; nearest: bfloat16, float32"),
    ("  config:", "  compile: perhaps\n  config:",
     "recipe.yaml:4: model.compile = perhaps: must be true or false"),
    ("  lr: 1e-3", "  lr: 1e-3\n  betas: [0.9]",
     "recipe.yaml:9: optimizer.betas = [0.9]: must be a list of 2 items, each a number at least 0 and less than 1"),
    ("  lr: 1e-3", "  lr: 1e-3\n  betas: [0.9, 1]",
     "recipe.yaml:9: optimizer.betas.1 = 1: must be a number at least 0 and less than 1"),
    ("name: small", "name: 12",
     "recipe.yaml:1: name = 12: must be at most 100 letters, digits, `.`, `_` and `-`, the first a letter or a digit: "
     "put it in quotes"),
    ("name: small", "task: causal_lm\nname: small",
     "recipe.yaml:1: task = causal_lm: must be one of causal-lm, image-classification; nearest: causal-lm"),
    ("name: small", "name: small\nname: other",
     "recipe.yaml:2: name = other: given twice, first at recipe.yaml:1; keep one"),
    ("name: small", "name: !!python/name:os.system small",
     "recipe.yaml:1: name: the tag tag:yaml.org,2002:python/name:os.system is not supported"),
    ("name: small", "name: &loop [*loop]",
     "recipe.yaml:1: name.0: an anchor inside itself"),
    ("name: small", "name: {small",
     "recipe.yaml:2: not valid YAML: expected ',' or '}', but got ':'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ONE_MISTAKE, ids=[case[2][:60] for case in ONE_MISTAKE])
def test_one_mistake_has_one_message(tmp_path, old, new, message):
    assert old in BASE
    found = mistakes(write_recipe(tmp_path, BASE.replace(old, new, 1)))
    assert message in found
    assert len(found) == 1 or "anchor" in message


def test_an_unknown_optimizer_is_told_all_and_the_nearest(tmp_path):
    (found,) = mistakes(write_recipe(tmp_path), ("optimizer.name=adamw2",))
    told, _, near = found.partition("; nearest: ")
    assert told == f"--set optimizer.name=adamw2: optimizer.name = adamw2: must be one of {NAMES}"
    assert near.split(", ")[0] == "adamw"


def test_all_mistakes_are_told_in_the_order_of_the_file(tmp_path):
    text = BASE.replace("1e-3", "0").replace("adamw", "adamw\n  bata: 1").replace("steps", "stps") + "seeds: 3\n"
    assert mistakes(write_recipe(tmp_path, text), ("batch.micro_batch=0", "optimizer.eps=x")) == [
        f"recipe.yaml:2: length = 100 stps: unknown unit 'stps'; the units are {UNITS}",
        "recipe.yaml:8: optimizer.bata = 1: unknown field of optimizer adamw; nearest: betas",
        "recipe.yaml:9: optimizer.lr = 0: must be a number greater than 0",
        "recipe.yaml:11: seeds = 3: unknown field; nearest: seed",
        "--set batch.micro_batch=0: batch.micro_batch = 0: must be a whole number at least 1",
        "--set optimizer.eps=x: optimizer.eps = x: must be a number greater than 0",
    ]


def test_conflicts_are_told_beside_mistakes_elsewhere(tmp_path):
    found = mistakes(write_recipe(tmp_path, BASE.replace("1e-3", "0")), ("model.config.vocab_size=8",))
    assert [line.split(": ")[1] for line in found] == ["optimizer.lr = 0", "model.config.vocab_size = 8"]


@pytest.mark.parametrize(
    ("written", "number"),
    [("1e-4", 1e-4), ("3E5", 3e5), ("1_000", 1000), ("1_000.5", 1000.5), (".5", 0.5), ("+2", 2), ("1.e2", 100.0),
     ("0x10", 16), ("0o17", 15), ("007", 7), ("6E-2", 0.06)],
)  # fmt: skip
def test_numbers_follow_yaml_1_2(tmp_path, written, number):
    read = load_recipe(write_recipe(tmp_path), [f"model.config.rope_theta={written}"]).model.config["rope_theta"]
    assert (read, type(read)) == (number, type(number))


@pytest.mark.parametrize("written", ["on", "off", "yes", "no", "2026-01-01", "1:30", "1e4e4", "0b11", "_1", "1.2.3"])
def test_other_scalars_are_text(tmp_path, written):
    recipe = load_recipe(write_recipe(tmp_path), [f"tracking.experiment={written}"])
    assert recipe.tracking.experiment == written


def test_quoted_numbers_are_text(tmp_path):
    assert load_recipe(write_recipe(tmp_path), ["name='1e4'"]).name == "1e4"


def test_overrides_change_sections_lists_and_what_the_file_leaves_out(tmp_path):
    path = write_recipe(tmp_path, BASE.replace("1e-3", "1e-3\n  betas: [0.9, 0.95]"))
    recipe = load_recipe(path, ["optimizer.betas.1=0.99", "scaling.workers=3", "optimizer.lr=1", "optimizer.lr=2"])
    assert isinstance(recipe.optimizer, AdamWConfig)
    assert recipe.optimizer.betas == (0.9, 0.99)
    assert recipe.scaling.workers == 3
    assert recipe.optimizer.lr == 2


def test_another_optimizer_reports_the_fields_it_does_not_have(tmp_path):
    path = write_recipe(tmp_path, BASE.replace("1e-3", "1e-3\n  betas: [0.9, 0.95]"))
    fields = ", ".join(SGDConfig.model_fields)
    assert mistakes(path, ("optimizer.name=sgd",)) == [
        f"recipe.yaml:9: optimizer.betas = [0.9, 0.95]: unknown field of optimizer sgd; the fields are {fields}"
    ]
    recipe = load_recipe(path, ["optimizer={name: sgd, lr: 0.1}"])
    assert isinstance(recipe.optimizer, SGDConfig)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr", "--set optimizer.lr: write --set a.b=value, with the dotted name of a field"),
        ("a..b=1", "--set a..b=1: write --set a.b=value, with the dotted name of a field"),
        ("name.x=1", "--set name.x=1: name = small has no fields"),
        ("optimizer.lr={", "--set optimizer.lr={: not valid YAML: expected the node content, but found '<stream end>'"),
        ("optimizer.betas.1=0.9", "--set optimizer.betas.1=0.9: optimizer.betas = {1: 0.9}: must be a list of 2 items, "
         "each a number at least 0 and less than 1"),
        ("optimzer.lr=1", "--set optimzer.lr=1: optimzer = {lr: 1}: unknown field; nearest: optimizer"),
        ("optimizer.lr=0", "--set optimizer.lr=0: optimizer.lr = 0: must be a number greater than 0"),
    ],
)  # fmt: skip
def test_mistakes_in_overrides_name_the_override(tmp_path, override, message):
    assert mistakes(write_recipe(tmp_path), (override,)) == [message]


def test_an_index_beyond_a_list_is_a_mistake(tmp_path):
    path = write_recipe(tmp_path, BASE.replace("1e-3", "1e-3\n  betas: [0.9, 0.95]"))
    expected = "--set optimizer.betas.2=0: optimizer.betas is a list of 2: write its index, counted from 0"
    assert mistakes(path, ("optimizer.betas.2=0",)) == [expected]


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "text"])
def test_a_recipe_is_a_mapping(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    (message,) = mistakes(path)
    assert message.endswith("a recipe is a section of `key: value` lines")


def test_a_missing_file_names_its_neighbours(tmp_path):
    write_recipe(tmp_path)
    assert mistakes(tmp_path / "recip.yaml") == ["recip.yaml: no such file; there are recipe.yaml"]


def test_a_file_that_is_not_text_is_a_mistake(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe")
    assert mistakes(path)[0].startswith("recipe.yaml: cannot be read: 'utf-8' codec")


def test_reading_a_recipe_imports_nothing_heavy(tmp_path):
    path = write_recipe(tmp_path, BASE.replace("1e-3", "0"))
    code = (
        "import sys\nfrom lowland.platform.recipe import load_recipe\n"
        f"try:\n    load_recipe({str(path)!r})\nexcept Exception as error:\n    print(type(error).__name__)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["RecipeError", "[]"]
