"""The pages on samplers and spaces: what they show is run."""

import subprocess
import sys

import pytest
from recipe_files import write_manifest
from support.docs import ROOT, blocks, commands

from lowland.platform.recipe import load_recipe
from lowland.platform.search.choices import make_sampler
from lowland.platform.search.space import open_space
from lowland.platform.search.start import begin
from lowland.trainers.errors import UserError

HOW_TO = ROOT / "docs" / "how-to"
SAMPLER, SPACE = HOW_TO / "write-a-sampler.md", HOW_TO / "write-a-space.md"
RECIPE = ROOT / "recipes" / "stdlib-adamw.yaml"


def run(folder, text):
    (folder / "example.py").write_text(text)
    done = subprocess.run([sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def sampler(tmp_path, monkeypatch):
    (tmp_path / "near_sampler.py").write_text(blocks(SAMPLER, "python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "near_sampler:Near"
    sys.modules.pop("near_sampler", None)


def test_the_sampler_of_the_page_beats_chance(sampler, tmp_path):
    run(tmp_path, blocks(SAMPLER, "python")[1])


def test_a_search_takes_it(sampler, tmp_path):
    (command,) = commands(SAMPLER)
    assert command[command.index("--sampler") + 1] == sampler
    data = write_manifest(tmp_path / "data", sequence_length=256)
    recipe = load_recipe(RECIPE, [f"data.path={data}", f"storage={tmp_path}"])
    setting = begin(recipe, ["adamw"], trials=4, sampler=sampler)
    assert type(make_sampler(setting.sampler, setting.bound().distributions(), 51, 0)).__name__ == "Near"
    for wrong, why in (
        ("nowhere:Near", "No module named 'nowhere'"),
        ("near_sampler:Far", "no attribute 'Far'"),
        ("near_sampler:mean", "no attribute"),
        ("builtins:dict", "must give an optuna"),
        ("optuna.samplers:RandomSampler", "it is called as RandomSampler"),
    ):
        with pytest.raises(UserError, match=why):
            begin(recipe, ["adamw"], trials=4, sampler=wrong)


def test_the_space_of_the_page_is_one(tmp_path):
    (tmp_path / "mine.yaml").write_text(blocks(SPACE, "yaml")[0])
    data = write_manifest(tmp_path / "data", sequence_length=256)
    recipe = load_recipe(RECIPE, [f"data.path={data}", f"storage={tmp_path / 'runs'}"])
    space = open_space([str(tmp_path / "mine.yaml"), "batch"], recipe)
    assert {"optimizer.name", "adamw/optimizer.lr", "lion/optimizer.lr"} <= space.distributions().keys()
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    text = RECIPE.read_text()
    (recipes / "stdlib-adamw.yaml").write_text(text)
    code = blocks(SPACE, "python")[0]
    told = run(
        tmp_path, code.replace('"recipes/stdlib-adamw.yaml")', f'"recipes/stdlib-adamw.yaml", ["data.path={data}"])')
    )
    assert "of 100 keep the constraints" in told


def test_the_warm_start_of_the_page_is_one(tmp_path):
    """The options that the page shows mean what it says; earlier trainings themselves are tested elsewhere."""
    shown = [command for command in commands(SPACE) if "--warm-start" in command]
    assert [command.count("--warm-start") for command in shown] == [2]
    data = write_manifest(tmp_path / "data", sequence_length=256)
    recipe = load_recipe(RECIPE, [f"data.path={data}", f"storage={tmp_path}"])
    known = next(c[c.index("--known-lr") + 1] for c in commands(SPACE) if "--known-lr" in c)
    setting = begin(recipe, ["adamw"], trials=4, known_lr=known)
    assert setting.bound().moved()
