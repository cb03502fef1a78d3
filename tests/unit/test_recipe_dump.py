"""A recipe that is written out and read again is the same recipe."""

import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_files import write_recipe

from lowland.platform.recipe import load_recipe, read_recipe
from lowland.platform.recipe.document import read_document
from lowland.platform.recipe.dump import dump, flatten

# YAML cannot hold lone surrogates; every other text must survive, numbers and booleans in disguise above all.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "1e4",
        "1e-4",
        "1_000",
        "0o17",
        "0x1F",
        "yes",
        "off",
        "null",
        "~",
        "",
        " a ",
        "1:30",
        "2026-01-01",
        ".inf",
        "a: b",
        "#c",
    ]
)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
FRACTION = st.floats(min_value=0, max_value=1, exclude_max=True)
COUNT = st.integers(min_value=1, max_value=10**6)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def amounts(*units):
    return st.builds(lambda value, unit: f"{value!r} {unit}", POSITIVE, st.sampled_from(units))


OPTIMIZERS = st.one_of(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["adamw", "adatamw"]), "lr": POSITIVE},
        optional={
            "betas": st.tuples(FRACTION, FRACTION),
            "eps": POSITIVE,
            "decay": st.sampled_from(["matrices", "all"]),
        },
    ),
    st.fixed_dictionaries({"name": st.just("sgd"), "lr": POSITIVE}, optional={"nesterov": st.booleans()}),
)
CONFIGS = st.dictionaries(TEXT, PLAIN, max_size=4).map(lambda config: config | {"model_type": "x"})
RECIPES = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "length": amounts("steps", "tokens", "epochs"),
        "model": st.fixed_dictionaries({"config": CONFIGS}),
        "data": st.fixed_dictionaries({"path": TEXT}),
        "optimizer": OPTIMIZERS,
        "batch": st.fixed_dictionaries({"micro_batch": COUNT}, optional={"global_tokens": COUNT | st.none()}),
    },
    optional={
        "sharding": st.sampled_from([{"engine": "torch"}, {"stage": 0}, {"stage": 3, "offload_optimizer": True}]),
        "schedule": st.fixed_dictionaries({"name": st.just("wsd")}, optional={"warmup": amounts("steps", "tokens")}),
        "checkpoints": st.fixed_dictionaries({"every": st.none() | amounts("steps", "minutes", "evaluations")}),
        "tracking": st.fixed_dictionaries({"tags": st.dictionaries(TEXT, TEXT, max_size=3)}),
        "scaling": st.fixed_dictionaries({"cpus_per_worker": POSITIVE}),
    },
)  # fmt: skip


@settings(deadline=None)
@given(RECIPES)
def test_dump_and_read_give_an_equal_recipe(data):
    recipe = read_recipe(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(dump(recipe), encoding="utf-8", newline="")
        document = read_document(path)
    assert document.mistakes == []
    assert read_recipe(document.data) == recipe
    # Other programs read it by YAML 1.1.
    assert read_recipe(yaml.safe_load(dump(recipe))) == recipe


def test_a_dumped_file_loads(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), ["sharding.engine=torch"])
    again = tmp_path / "again.yaml"
    again.write_text(dump(recipe), encoding="utf-8")
    assert load_recipe(again) == recipe
    assert dump(load_recipe(again)) == dump(recipe)


@given(RECIPES)
def test_parameters_name_every_field_once(data):
    recipe = read_recipe(data)
    parameters = flatten(recipe)
    assert all(type(value) in (str, int, float) for value in parameters.values())
    assert parameters["length"] == str(recipe.length)
    assert parameters["optimizer.lr"] == recipe.optimizer.lr
    assert parameters["scaling.workers"] == 1


def test_parameters_are_written_as_a_recipe_writes_them(tmp_path):
    parameters = flatten(load_recipe(write_recipe(tmp_path), ["tracking.tags={'team:a,b': x}"]))
    assert parameters["optimizer.betas"] == "[0.9, 0.95]"
    assert parameters["model.path"] == "null"
    assert parameters["model.compile"] == "false"
    assert parameters["schedule.warmup"] == "0%"
    assert parameters["tracking.tags.team:a_b"] == "x"
    assert parameters["model.config.max_position_embeddings"] == 64
