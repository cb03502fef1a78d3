"""Run folders: records survive, names are never silently reused."""

import itertools
import os
import subprocess
import sys
import threading

import pytest
from support.docs import ROOT

from lowland.platform.recipe import read_recipe
from lowland.platform.recipe.document import read_document
from lowland.platform.recipe.dump import flatten
from lowland.platform.resume import Resume, Start, as_now, decide, differences
from lowland.platform.runs import Driver, RunFolder, RunRecord, as_text, existing_run, recipe_digest, run_names
from lowland.trainers.errors import UserError

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
RECIPE = {"name": "a", "optimizer.lr": "0.1", "length": "10 steps", "scaling.workers": "2", "storage": "runs"}


def record(status="failed", recipe=RECIPE, **changes):
    return RunRecord.new("a", recipe).with_(status=status, **changes)


def changed(**fields):
    return RECIPE | {path.replace("__", "."): value for path, value in fields.items()}


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_free_name_starts(resume):
    assert decide(resume, "a", None, RECIPE) == Start()


def test_a_named_run_must_exist():
    with pytest.raises(UserError, match="no run of that name"):
        decide("a", "a", None, RECIPE)


@pytest.mark.parametrize("status", ["created", "running", "finished", "failed", "interrupted"])
def test_never_refuses_every_existing_run_and_says_how_to_go_on(status):
    with pytest.raises(UserError, match=r"--resume a.*--name"):
        decide("never", "a", record(status), RECIPE)


@pytest.mark.parametrize("resume", ["auto", "a"])
@pytest.mark.parametrize("status", ["created", "running", "failed", "interrupted"])
def test_an_unfinished_run_of_the_same_recipe_continues(resume, status):
    assert decide(resume, "a", record(status), RECIPE) == Resume()


@pytest.mark.parametrize("resume", ["auto", "a"])
def test_a_finished_run_is_never_trained_on_silently(resume):
    with pytest.raises(UserError, match="has finished"):
        decide(resume, "a", record("finished"), RECIPE)


def test_a_finished_run_continues_by_name_when_it_is_made_longer():
    longer = changed(length="20 steps")
    assert decide("a", "a", record("finished"), longer) == Resume(("length: 10 steps -> 20 steps",))
    with pytest.raises(UserError, match="has finished"):
        decide("auto", "a", record("finished"), longer)


def test_auto_refuses_another_recipe_and_shows_what_differs():
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.1 -> 0\.2.*--resume a"):
        decide("auto", "a", record(), changed(optimizer__lr="0.2"))


def test_the_list_of_differences_stays_short():
    other = {f"x{i}": "1" for i in range(9)}
    with pytest.raises(UserError, match="and 5 more"):
        decide("auto", "a", record(), RECIPE | other)


def test_a_named_run_takes_another_scaling_and_tells_of_the_rest():
    recipe = changed(scaling__workers="1", optimizer__lr="0.2")
    assert decide("a", "a", record(), recipe) == Resume(("optimizer.lr: 0.1 -> 0.2",))


def test_where_a_run_lies_is_no_difference():
    moved = changed(storage="/elsewhere/runs")
    assert decide("auto", "a", record(), moved) == Resume()
    assert recipe_digest(moved) == recipe_digest(RECIPE)
    assert recipe_digest(changed(optimizer__lr="0.2")) != recipe_digest(RECIPE)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_field_that_came_since_is_no_other_recipe(path):
    """And a number that is written otherwise is the same number."""
    recipe = read_recipe(read_document(path).data)
    fields = as_text(flatten(recipe))
    older = {name: value for name, value in fields.items() if name not in ("seed", "checkpoints.keep_best")}
    older["scaling.workers"] += ".0"
    assert as_now(older, recipe) == fields
    other = as_now(older, recipe.model_copy(update={"seed": 7, "storage": "elsewhere"}))
    assert other == fields, "what the run began with, not what the command says"


SGD = {"name": "sgd", "lr": 0.1}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"optimizer": {**SGD, "sam": {"rho": 0.1}}}, {}),
        ({}, {"optimizer": {**SGD, "sam": {"rho": 0.1}, "ema": {"half_life": "5 steps"}}}),
        (
            {"optimizer": {"name": "adamw", "lr": 1e-3}, "methods": [{"name": "spectral_decoupling", "strength": 0.1}]},
            {},
        ),
        ({"schedule": {"name": "wsd", "cooldown": "30%"}}, {"schedule": {"name": "cosine", "final": 0.1}}),
        ({"tracking": {"tags": {"a": "x"}}}, {"tracking": {"tags": {"b": "y"}}}),
        ({"tracking": {"tags": {"a": "x", "a.b": "z"}}}, {"tracking": {"tags": {"a": "x"}}}),
    ],
    ids=["sam left out", "sam put in", "another optimizer", "another schedule", "tags", "tags with dots"],
)
def test_a_record_stays_what_it_was_whatever_the_recipe_has_become(before, now):
    data = read_document(ROOT / "recipes" / "digits-resnet.yaml").data
    had, recipe = (read_recipe({**data, "optimizer": SGD, **changes}) for changes in (before, now))
    fields = as_text(flatten(had))
    older = {name: value for name, value in fields.items() if name != "seed"}
    readable = "tracking.tags.a.b" not in fields
    assert as_now(older, recipe) == (fields if readable else older)


def test_a_record_that_makes_no_recipe_any_more_counts_as_it_is():
    recipe = read_recipe(read_document(RECIPES[0]).data)
    older = {**as_text(flatten(recipe)), "optimizer.gone": "1"}
    assert as_now(older, recipe) == older
    assert as_now({**older, "optimizer.gone": "[*a]"}, recipe)["optimizer.gone"] == "[*a]"


def test_fields_that_came_and_went_are_differences():
    assert differences({"a": "1"}, {"b": "2"}) == {"a": "a: 1 -> unset", "b": "b: unset -> 2"}


@pytest.mark.parametrize("resume", ["auto", "a"])
def test_a_run_that_another_process_leads_is_left_alone(resume):
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        decide(resume, "a", record("running", driver=Driver.current()), RECIPE)


def test_a_driver_that_died_is_not_alive_even_if_its_process_id_is_reused():
    process = subprocess.Popen([sys.executable, "-c", ""])
    gone = Driver.current().model_copy(update={"pid": process.pid})
    process.wait()
    assert not gone.alive()
    earlier = Driver.current().model_copy(update={"started": Driver.current().started - 100})
    assert not earlier.alive()
    assert Driver.current().alive()


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])  # `local` is fsspec's: Arrow does not know it
def test_records_survive_on_any_file_system(tmp_path, scheme):
    folder = RunFolder.open(f"{scheme}{tmp_path}/store", "a")
    assert folder.read() is None
    assert not folder.exists()
    folder.create()
    folder.write(record(mlflow_run_id="1", attempts=3))
    assert folder.read() == RunFolder.open(f"{tmp_path}/store", "a").read()
    assert folder.read().attempts == 3
    assert sorted(path.name for path in (tmp_path / "store/a").iterdir()) == [
        "checkpoints",
        "logs",
        "model",
        "run.json",
    ]


def test_a_relative_storage_counts_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.open("runs", "a")
    monkeypatch.chdir("/")
    folder.create()
    assert (tmp_path / "runs/a/checkpoints").is_dir()
    assert folder.uri == str(tmp_path / "runs/a")


def test_an_unknown_storage_is_the_users_mistake():
    with pytest.raises(UserError, match="nosuch://"):
        RunFolder.open("nosuch://bucket/x", "a")


def test_a_folder_that_is_no_run_is_not_taken(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.json").touch()
    with pytest.raises(UserError, match="holds files but no run"):
        RunFolder.open(str(tmp_path), "data").create()


def test_a_damaged_record_is_reported_with_its_path(tmp_path):
    folder = RunFolder.open(str(tmp_path), "a")
    folder.create()
    folder.write_bytes(b"{", "run.json")
    with pytest.raises(UserError, match=r"a/run\.json"):
        folder.read()


def test_readers_see_a_whole_record_while_it_is_rewritten(tmp_path):
    folder = RunFolder.open(str(tmp_path), "a")
    folder.create()
    versions = [record(attempts=n, recipe=RECIPE | {"pad": "x" * 50_000 * n}) for n in (1, 2)]
    folder.write(versions[0])
    done = threading.Event()

    def rewrite():
        for version in itertools.islice(itertools.cycle(versions), 100):
            folder.write(version)
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = 0
    while not done.is_set():
        assert folder.read() in versions
        seen += 1
    writer.join()
    assert seen > 1
    assert not list((tmp_path / "a").glob("*.tmp"))


def test_a_write_that_fails_leaves_the_old_record(tmp_path, monkeypatch):
    folder = RunFolder.open(str(tmp_path), "a")
    folder.create()
    folder.write(record(attempts=1))

    class FailingMove:
        def __init__(self, filesystem):
            self.open_output_stream = filesystem.open_output_stream

        def move(self, source, target):
            raise OSError("disk full")

    broken = RunFolder(FailingMove(folder.filesystem), folder.path, folder.uri, folder.local)
    with pytest.raises(OSError, match="disk full"):
        broken.write(record(attempts=2))
    assert folder.read().attempts == 1


def test_attempts_count_and_keep_the_identity(tmp_path):
    first = RunRecord.new("a", RECIPE).next_attempt(RECIPE)
    second = first.with_(status="failed", mlflow_run_id="7").next_attempt(changed(scaling__workers="1"))
    assert (second.attempts, second.status, second.mlflow_run_id) == (2, "running", "7")
    assert second.recipe["scaling.workers"] == "1"
    assert second.created_at == first.created_at <= second.updated_at


def test_an_unknown_run_names_the_nearest(tmp_path):
    for name in ("adamw", "muon"):
        folder = RunFolder.open(str(tmp_path), name)
        folder.create()
        folder.write(record())
    (tmp_path / "data").mkdir()
    assert run_names(str(tmp_path)) == ["adamw", "muon"]
    with pytest.raises(UserError, match="there is adamw"):
        existing_run(str(tmp_path), "adamv")
    with pytest.raises(UserError, match="holds no runs"):
        existing_run(str(tmp_path / "empty"), "adamw")
