"""A search's trials in a database: the same as in a journal, found by every command, with no password anywhere."""

from pathlib import Path

import optuna
import pytest
from recipe_files import write_recipe
from typer.testing import CliRunner

from lowland.platform import cli
from lowland.platform.recipe import load_recipe
from lowland.platform.recipe.dump import dump, flatten
from lowland.platform.runs import Driver
from lowland.platform.search.policies import Promotion
from lowland.platform.search.results import read_study
from lowland.platform.search.setting import TICKS, Setting, read_setting
from lowland.platform.search.simulate import simulate
from lowland.platform.search.start import begin, open_study
from lowland.platform.search.storage import database_of, location, open_storage, storage_at
from lowland.platform.search.study import Study
from lowland.platform.tracking.store import resolve_uri
from lowland.platform.urls import redact, whole, without_secrets
from lowland.trainers.errors import UserError

SPACE = """
description: A rate and a kind
parameters:
  optimizer.lr: {type: float, low: 1.0e-5, high: 1.0e-1, log: true}
  optimizer.name: {type: choice, values: [adamw, lion]}
"""
NARROW = SPACE.replace("1.0e-1", "1.0e-2")
SECRET = "postgresql://me:s3cret@127.0.0.1:1/studies"


class Falling:
    """Lower rates are better."""

    def values(self, parameters, start, end):
        return [parameters["optimizer.lr"] + 1 / r for r in range(start + 1, end + 1)]

    def seconds(self, parameters, start, end):
        return float(end - start)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("LOWLAND_DATABASE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def start(folder: Path, database=None, space=SPACE, name="small", **changes) -> Setting:
    (folder / "space.yaml").write_text(space)
    recipe = load_recipe(write_recipe(folder / "given"), [f"storage={folder / 'runs'}", f"name={name}"])
    return begin(recipe, [str(folder / "space.yaml")], trials=4, sampler="random", seed=3, database=database, **changes)


def searched(setting: Setting) -> Study:
    """As a driver does, under virtual time."""
    setting.write()
    study = open_study(setting)
    simulate(study, Promotion(TICKS), Falling(), workers=2, budget=TICKS)
    return study


def invoke(*arguments) -> str:
    answer = CliRunner().invoke(cli.app, ["study", *map(str, arguments)])
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_a_database_holds_what_a_journal_holds(tmp_path):
    """Also read again by another process, here another connection."""
    found = []
    for place in (None, f"sqlite:///{tmp_path}/new/trials.db", str(tmp_path / "elsewhere.journal")):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        setting = start(folder, place)
        study = searched(setting)
        again = read_setting(setting.recipe.storage, "small")
        assert open_study(again).trials() == study.trials()
        assert Path(location(setting).removeprefix("sqlite:///")).is_file()
        result = read_study(setting.recipe.storage, "small")
        found.append([(t.parameters, t.curve, t.status, t.target) for t in result.trials])
    assert len(found[0]) > 4
    assert found[0] == found[1] == found[2]


def test_commands_find_a_study_in_a_database(tmp_path):
    setting = start(tmp_path, f"sqlite:///{tmp_path}/trials.db")
    searched(setting)
    storage = setting.recipe.storage
    best = read_study(storage, "small").best
    assert "small" in invoke("list", "--storage", storage)
    assert f"{best.value:.5g}" in invoke("show", "small", "--storage", storage)
    invoke("export", "small", "--storage", storage, "--out", tmp_path / "t.csv")
    assert "ends after the steps" in invoke("stop", "small", "--storage", storage)
    assert not (setting.folder / "trials.journal").exists()


@pytest.mark.parametrize("database", [None, "sqlite:///{}/trials.db", "{}/trials.journal"])
def test_looking_at_a_study_that_has_no_trials_yet_makes_no_files(tmp_path, database):
    setting = start(tmp_path, database and database.format(tmp_path))
    setting.write()
    before = sorted(tmp_path.rglob("*"))
    assert read_study(setting.recipe.storage, "small").trials == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("database", [None, "sqlite"])
def test_the_dashboards_storage_class_opens_it(tmp_path, database):
    """optuna-dashboard opens URLs and files as these classes, with these arguments; its own if it is there."""
    setting = start(tmp_path, database and f"sqlite:///{tmp_path}/trials.db")
    study = searched(setting)
    try:
        from optuna_dashboard._storage_url import guess_storage_from_url as opened
    except ImportError:

        def opened(place):
            if database:
                return optuna.storages.RDBStorage(place, skip_compatibility_check=True, skip_table_creation=True)
            return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(file_path=place))

    storage = opened(location(setting))
    (summary,) = optuna.get_all_study_summaries(storage)
    assert summary.study_name == "small"
    trials = storage.get_all_trials(storage.get_study_id_from_name("small"))
    assert [t.number for t in trials] == [t.number for t in study.trials()]


def test_a_name_stands_for_one_search_in_a_database(tmp_path):
    place = f"sqlite:///{tmp_path}/trials.db"
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    searched(start(first, place))
    with pytest.raises(UserError, match=r"high=0\.1.*there.*high=0\.01.*here"):
        start(second, place, NARROW)
    with pytest.raises(UserError, match=r"to minimize, this search to\s+maximize"):
        start(second, place, direction="maximize")
    with pytest.raises(UserError, match=f"begun in {first / 'runs' / 'small'}"):
        start(second, place)
    other = start(second, place, name="other")
    searched(other)
    late = other.with_(recipe=other.recipe.model_copy(update={"name": "small"}))
    with pytest.raises(UserError, match="belongs to"):
        open_study(late)  # as if both had begun at the same moment


def test_a_study_that_others_made_is_left_alone(tmp_path):
    place = f"sqlite:///{tmp_path}/trials.db"
    theirs = optuna.create_study(storage=place, study_name="small")
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UserError, match="not begun by lowland"):
        start(tmp_path, place)
    assert optuna.load_study(storage=place, study_name="small").user_attrs == {}


def test_passwords_are_nowhere(tmp_path, monkeypatch):
    setting = start(tmp_path).with_(database=SECRET)
    setting.write()
    held = (setting.folder / "search.json").read_text()
    assert "s3cret" not in held + repr(setting) + str(setting) + location(setting)
    assert "postgresql://me:***@127.0.0.1:1/studies" in held
    again = read_setting(setting.recipe.storage, "small")
    with pytest.raises(UserError, match=r"set LOWLAND_DATABASE to postgresql://me:") as told:
        open_storage(again)
    assert "s3cret" not in str(told.value)
    monkeypatch.setenv("LOWLAND_DATABASE", SECRET)
    assert whole(again.database, "LOWLAND_DATABASE") == SECRET
    with pytest.raises(
        UserError, match=r"the database postgresql://me:\*\*\*@127.0.0.1:1/studies cannot be used"
    ) as told:
        open_storage(again)  # nobody listens there, or there is no driver
    assert "s3cret" not in str(told.value)
    monkeypatch.setenv("LOWLAND_DATABASE", SECRET.replace("studies", "others"))
    with pytest.raises(UserError, match=r"set LOWLAND_DATABASE"):
        open_storage(again)


def test_the_password_of_the_tracking_store_is_nowhere_either(tmp_path, monkeypatch):
    """Not in the recipes, records and settings that runs leave; it comes back from the environment."""
    uri = "http://me:s3cret@127.0.0.1:1"
    recipe = load_recipe(write_recipe(tmp_path), [f"tracking.uri={uri}", f"storage={tmp_path / 'runs'}"])
    setting = begin(recipe, ["adamw"], trials=1)
    setting.write()
    assert resolve_uri(recipe.tracking, recipe.storage) == uri
    kept = [dump(recipe), str(flatten(recipe)), recipe.model_dump_json(), (setting.folder / "search.json").read_text()]
    for text in kept:
        assert "s3cret" not in text
        assert "http://me:***@127.0.0.1:1" in text
    again = read_setting(str(tmp_path / "runs"), "small").recipe
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI to http://me:"):
        resolve_uri(again.tracking, again.storage)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert resolve_uri(again.tracking, again.storage) == uri


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pw@h:5/d", "postgresql://me:***@h:5/d"),
        ("mysql+pymysql://me@h/d?ssl_ca=a&password=pw", "mysql+pymysql://me@h/d?ssl_ca=a&password=***"),
        ("postgresql://me@h/d", "postgresql://me@h/d"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("/a/b.journal", "/a/b.journal"),
        ("postgresql://:pw@h/d", "postgresql://:***@h/d"),
    ],
)
def test_what_is_shown_of_urls(url, shown):
    assert redact(url) == shown
    assert redact(shown) == shown
    assert without_secrets(f"cannot open {url}", url) == f"cannot open {shown}"


def test_a_password_is_hidden_as_it_is_written_and_as_it_is_meant():
    assert without_secrets("p@w at p%40w", "postgresql://me:p%40w@h/d") == "*** at ***"


def test_places_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert database_of("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    assert database_of("a.journal") == f"{tmp_path}/a.journal"
    for wrong, why in (("sqlite://", "would be lost"), ("sqlite:///", "would be lost"), (str(tmp_path), "a folder")):
        with pytest.raises(UserError, match=why):
            database_of(wrong)
    with pytest.raises(UserError, match="cannot be used"):
        storage_at("nosuch://me:pw@h/d")
    (tmp_path / "text.db").write_text("no database" * 1000)
    with pytest.raises(UserError, match=r"the database sqlite:.*cannot be used: .*not a database"):
        storage_at(f"sqlite:///{tmp_path}/text.db")


def test_a_database_whose_password_nobody_will_know_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match=r"set LOWLAND_DATABASE to postgresql://me:.* with its password") as caught:
        start(tmp_path, SECRET)
    assert "s3cret" not in str(caught.value)


def test_a_journal_that_was_named_is_mended_but_its_lock_may_be_anothers(tmp_path):
    file = tmp_path / "elsewhere.journal"
    setting = start(tmp_path, str(file))
    number = len(searched(setting).trials())
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code":4')
    assert len(open_study(setting).trials()) == number
    assert file.read_bytes().startswith(whole)
    assert b'{"op_code":4{' not in file.read_bytes()


def test_a_lock_of_a_driver_on_another_machine_stays(tmp_path):
    setting = start(tmp_path)
    searched(setting)
    away = setting.with_(driver=Driver(host="elsewhere", pid=1, started=0.0))
    alone = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowland.platform.search.journal.mend", lambda journal, **said: alone.append(said["alone"]))
        open_study(away)
        open_study(setting)
    assert alone == [False, True]
