"""Where trials are first compared: behind their warm-ups, or where people say."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import write_recipe
from typer.testing import CliRunner

from lowland.platform import cli
from lowland.platform.recipe import Recipe, load_recipe
from lowland.platform.search.first_rung import first_rung, longest_warmup, notes
from lowland.platform.search.same import refuse_another
from lowland.platform.search.setting import TICKS, Setting, read_setting
from lowland.platform.search.start import begin, policy_of
from lowland.search_spaces import Space
from lowland.trainers.errors import UserError

RATE = {"optimizer.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}}
WARMUP = {"type": "float", "low": 0, "high": 30, "unit": "%"}


def recipe(tmp_path: Path, warmup: str = "5%") -> Recipe:
    """A recipe with a warm-up."""
    changes = {"length": "200 steps", "schedule": f"{{name: wsd, warmup: {warmup}}}", "storage": tmp_path / "runs"}
    return load_recipe(write_recipe(tmp_path), [f"{path}={value}" for path, value in changes.items()])


def space(**parameters: Any) -> Space:
    """A space of the rate and more."""
    return Space.model_validate({"description": "A rate", "parameters": {**RATE, **parameters}})


@pytest.mark.parametrize(
    ("warmup", "searched", "place"),
    [
        ("5%", {}, 3),  # 51 / 17, behind 2.55
        ("0%", {}, 3),
        ("10%", {}, 6),  # 5.1
        ("20 steps", {}, 6),  # of 200
        ("2k tokens", {}, 3),  # of unknown share
        ("80%", {}, 41),  # 40.8
        ("10%", {"schedule.warmup": WARMUP}, 16),  # 15.3: the recipe's own is in no trial
        ("0%", {"schedule.warmup": {"type": "integer", "low": 1, "high": 50, "unit": "steps"}}, 13),  # 12.75
        ("0%", {"schedule.warmup": {"type": "choice", "values": ["0%", "12%"]}}, 7),  # 6.12
        ("0%", {"schedule.warmup": "12%"}, 7),
        ("0%", {"schedule.warmup": {"type": "branch", "alternatives": {"2%": {}, "20%": {}}}}, 11),  # 10.2
        ("0%", {"schedule.warmup": {"type": "unbounded", "centre": 5, "high": 20, "unit": "%"}}, 11),
        ("10%", {"schedule.warmup": {"type": "unbounded", "centre": 5, "unit": "%"}}, 3),  # without an end
    ],
)
def test_trials_are_first_compared_behind_the_longest_warmup(
    tmp_path: Path, warmup: str, searched: dict[str, Any], place: int
):
    assert first_rung(None, "promotion", space(**searched), recipe(tmp_path, warmup)) == place


def test_a_warmup_of_one_alternative_only_leaves_the_recipes_to_the_others(tmp_path: Path):
    branch = {"type": "branch", "alternatives": {"as-given": {}, "long": {"schedule.warmup": "8%"}}}
    assert longest_warmup(space(kind=branch), recipe(tmp_path, "5%")) == 0.08
    assert longest_warmup(space(kind=branch), recipe(tmp_path, "9%")) == 0.09


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe without a warm-up."""
    return recipe(tmp_path_factory.mktemp("plain"), "0%")


@given(high=st.floats(0.1, 100))
def test_no_trial_is_within_its_warmup_when_it_is_compared(plain: Recipe, high: float):
    warmups = space(**{"schedule.warmup": {**WARMUP, "high": high}})
    place = first_rung(None, "promotion", warmups, plain)
    assert place / TICKS >= high / 100 - 1e-9
    assert place == 3 or (place - 1) / TICKS < high / 100, "and no later than it must"


def test_people_say_where(tmp_path: Path):
    where = space(**{"schedule.warmup": WARMUP}), recipe(tmp_path)
    assert [first_rung(text, "stopping", *where) for text in ("6%", "12 %", "0.1%", "100%")] == [3, 6, 1, 51]
    for text in ("12", "0%", "101%", "5 steps", "-3%", "early"):
        with pytest.raises(UserError, match=r"--first-rung .*: write a percentage of a training, for example 12%"):
            first_rung(text, "promotion", *where)
    for policy in ("none", "pbt"):
        assert first_rung(None, policy, *where) == 0
        with pytest.raises(UserError, match=f"--policy {policy} compares no trials there"):
            first_rung("12%", policy, *where)


def searched(tmp_path: Path, **options: Any) -> Setting:
    """A search of the warm-up."""
    file = tmp_path / "space.yaml"
    file.write_text(space(**{"schedule.warmup": WARMUP}).model_dump_json(), encoding="utf-8")
    return begin(recipe(tmp_path), [str(file)], trials=4, **options)


def test_a_search_keeps_its_place(tmp_path: Path):
    setting = searched(tmp_path)
    setting.write()
    kept = read_setting(setting.recipe.storage, setting.name)
    assert kept is not None
    assert kept.first_rung == 16
    assert policy_of(kept).first == 16
    refuse_another(kept, setting.recipe, first_rung="31%")
    with pytest.raises(UserError, match="first_rung: 16 -> 6"):
        refuse_another(kept, setting.recipe, first_rung="12%")


def test_a_search_from_before_places_were_kept_has_a_seventeenth(tmp_path: Path):
    setting = searched(tmp_path)
    old = Setting.model_validate(setting.model_dump(mode="json", exclude={"first_rung"}))
    assert policy_of(old).first == TICKS // 17
    assert next(notes(old)).startswith("note: trials are first compared after 6% of a training, and warm-ups of up to")
    refuse_another(old, setting.recipe, first_rung="6%")


def test_what_the_place_is_is_told(tmp_path: Path):
    assert list(notes(searched(tmp_path))) == [
        "trials are first compared after 31% of a training, behind warm-ups of up to 30%"
    ]
    assert "warm-ups of up to 30% are not over there" in next(notes(searched(tmp_path, first_rung="12%")))
    assert not list(notes(searched(tmp_path, policy="none")))


def test_the_command_takes_a_place_and_refuses_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    heard: list[Setting] = []
    monkeypatch.setattr("lowland.platform.search.tune.tune", lambda setting, **_: heard.append(setting))
    command = ["tune", str(write_recipe(tmp_path)), "--set", f"storage={tmp_path}", "--trials", "4"]
    (tmp_path / "rate.yaml").write_text(space().model_dump_json(), encoding="utf-8")
    command += ["--space", str(tmp_path / "rate.yaml"), "--first-rung"]
    CliRunner().invoke(cli.app, [*command, "20%"])
    assert [setting.first_rung for setting in heard] == [10]
    refused = CliRunner().invoke(cli.app, [*command, "early"])
    assert len(heard) == 1
    assert "--first-rung early" in str(refused.exception)
