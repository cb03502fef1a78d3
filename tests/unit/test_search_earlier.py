"""Earlier trainings for a new search: from studies and from MLflow, used or told why not."""

import math
import random
from pathlib import Path

import pytest
from recipe_files import write_manifest, write_recipe

from lowland.platform.recipe import load_recipe
from lowland.platform.recipe.dump import flatten
from lowland.platform.runs import as_text
from lowland.platform.search.driver import notes
from lowland.platform.search.points import differences, located
from lowland.platform.search.policies import Promotion
from lowland.platform.search.recorded import recorded
from lowland.platform.search.results import read_study
from lowland.platform.search.search import Search
from lowland.platform.search.setting import TICKS, Setting, read_setting
from lowland.platform.search.simulate import simulate
from lowland.platform.search.space import open_space
from lowland.platform.search.start import begin, open_study
from lowland.platform.tracking.run import TrackedRun
from lowland.platform.tracking.store import check_store
from lowland.search_spaces import shipped
from lowland.trainers.errors import UserError

RATE = "optimizer.lr"
SPACE = """
description: A rate and a momentum
parameters:
  optimizer.lr: {type: float, low: 1.0e-5, high: 1.0e-1, log: true, prior: {centre: 1.0e-4}}
  1 - optimizer.betas.1: {type: float, low: 1.0e-3, high: 0.2, log: true}
"""
BRANCHES = """
description: The same, otherwise written
parameters:
  optimizer.name:
    type: branch
    alternatives:
      lion: {optimizer.lr: {type: float, low: 1.0e-6, high: 1.0e-2, log: true}}
      adamw:
        optimizer.lr: {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
        1 - optimizer.betas.1: {type: float, low: 1.0e-4, high: 0.9, log: true}
"""


class Valley:
    """Best at a rate of 1e-3; no number above 3e-2."""

    def values(self, parameters, start, end):
        rate = parameters.get(RATE) or parameters[f"adamw/{RATE}"]
        return [math.nan if rate > 3e-2 else (math.log10(rate) + 3) ** 2 + 1 / r for r in range(start + 1, end + 1)]

    def seconds(self, parameters, start, end):
        return float(end - start)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("LOWLAND_DATABASE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def recipe(folder: Path, name: str, *changes: str):
    return load_recipe(write_recipe(folder / "given"), [f"storage={folder / 'runs'}", f"name={name}", *changes])


def start(folder: Path, name: str, *changes: str, space: str = SPACE, **given) -> Setting:
    (folder / f"{name}.yaml").write_text(space)
    made = recipe(folder, name, *changes)
    return begin(made, [str(folder / f"{name}.yaml")], trials=4, seed=3, **{"sampler": "random", **given})


@pytest.fixture
def old(tmp_path) -> Setting:
    """A search that ended, of a dozen trials or so."""
    setting = start(tmp_path, "old")
    setting.write()
    simulate(open_study(setting), Promotion(TICKS), Valley(), workers=1, budget=2 * TICKS)
    return setting


@pytest.mark.parametrize("name", [*shipped(), "auto"])
def test_what_a_trial_of_any_space_was_is_found_in_its_recipe(tmp_path, name):
    """The parameters of an earlier trial, from its recipe's text, in every space that comes with lowland."""
    bound = open_space([name], load_recipe(write_recipe(tmp_path)))
    generator, tried = random.Random(0), 0
    for _ in range(32):
        drawn = bound.draw(generator)
        if bound.why_not(drawn):
            continue
        tried += 1
        drawn = {key: value for key, value in drawn.items() if key in bound.active(drawn)}
        fields = as_text(flatten(bound.apply(drawn)))
        (found,) = (
            one
            for one in located(bound.space, fields)
            if differences(as_text(flatten(bound.apply(one))), fields) == [] and one.keys() == drawn.keys()
        )
        for key, value in drawn.items():
            assert found[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), key
    assert tried > 3


def test_trials_of_an_earlier_study_are_trials(tmp_path, old):
    before = read_study(old.recipe.storage, "old").trials
    setting = start(tmp_path, "new", warm_start=["old"])
    setting.write()
    study = open_study(read_setting(setting.recipe.storage, "new"))
    trials = study.trials()
    assert [t.source for t in trials] == [f"study old, trial {t.number}" for t in before]
    assert [t.parameters for t in trials] == [pytest.approx(dict(t.parameters), rel=1e-9) for t in before]
    assert [t.curve for t in trials] == [t.curve for t in before]
    assert any(math.isinf(v) for t in trials for v in t.curve.values()), "what gave no number is told too"
    assert setting.warm_start == (f"used of study old: {', '.join(f'trial {t.number}' for t in before)}",)
    assert f"warm start: {setting.warm_start[0]}" in notes(setting, 1)
    assert len(open_study(setting).trials()) == len(before), "once, however often it is begun"


def test_they_cost_nothing_and_are_not_counted(tmp_path, old):
    setting = start(tmp_path, "new", warm_start=["old"], budget="5 trainings")
    study = open_study(setting)
    held = Search(
        study, Promotion(TICKS), None, lambda _: [], metric="eval/loss", most=setting.trials, budget=setting.limit
    )
    assert held.share() == 0.0
    assert held.ledger().trainings == 0.0
    found = read_study(setting.with_(database=None).recipe.storage, "old")
    assert found.trainings > 0


def test_the_fields_count_not_the_names_of_parameters(tmp_path, old):
    """Another space finds the same trainings, and says which of them lie outside of it."""
    before = read_study(old.recipe.storage, "old").trials
    setting = start(tmp_path, "new", space=BRANCHES, warm_start=["old"])
    inside = [t for t in before if t.parameters[RATE] >= 1e-4]
    assert 0 < len(inside) < len(before)
    assert [e.source for e in setting.earlier] == [f"study old, trial {t.number}" for t in inside]
    assert setting.earlier[0].parameters == {
        "optimizer.name": "adamw",
        "adamw/optimizer.lr": pytest.approx(inside[0].parameters[RATE]),
        "adamw/1 - optimizer.betas.1": pytest.approx(inside[0].parameters["1 - optimizer.betas.1"]),
    }
    skipped = [line for line in setting.warm_start if line.startswith("skipped")]
    assert sum(line.count("trial ") for line in skipped) == len(before) - len(inside)
    assert all("lies outside the space" in line for line in skipped)


def test_another_training_is_no_trial(tmp_path, old):
    with pytest.raises(UserError, match=r"none of \d+ trainings.*\n.*length is 100 steps there and 200 steps here"):
        start(tmp_path, "new", "length=200 steps", warm_start=["old"])
    with pytest.raises(UserError, match=r"optimizer\.weight_decay is 0\.1 there and 0\.5 here"):
        start(tmp_path, "new", "optimizer.weight_decay=0.5", warm_start=["old"])
    with pytest.raises(UserError, match=r"optimizer.sam"):
        start(tmp_path, "new", "optimizer.sam={rho: 0.05}", warm_start=["old"])
    assert start(tmp_path, "new", "seed=7", "log_every=3", warm_start=["old"]).earlier


def test_data_may_have_moved(tmp_path, old):
    (tmp_path / "given" / "prepared").rename(tmp_path / "given" / "moved")
    write_recipe(tmp_path / "given")  # the same again
    moved = f"data.path={tmp_path / 'given' / 'moved'}"
    assert start(tmp_path, "new", moved, warm_start=["old"]).earlier
    write_manifest(tmp_path / "given" / "moved", sequence_length=32)
    with pytest.raises(UserError, match=r"data\.path is"):
        start(tmp_path, "new", moved, warm_start=["old"])


def test_a_related_task_tells_where_to_look(tmp_path, old):
    setting = start(
        tmp_path, "new", "length=200 steps", space=BRANCHES, warm_start=["old"], related=True, sampler="multi-fidelity"
    )
    assert setting.earlier == ()
    priors = read_back(setting).bound().priors()
    assert float(str(priors[f"adamw/{RATE}"].centre)) == pytest.approx(1e-3, rel=1.5)
    assert priors["optimizer.name"].centre == "adamw"
    assert "lion/optimizer.lr" not in priors
    assert any(line.startswith(f"prior of adamw/{RATE}: 0.00") for line in setting.warm_start)
    with pytest.raises(UserError, match="--sampler tpe does not use"):
        start(tmp_path, "other", warm_start=["old"], related=True, sampler="tpe")
    with pytest.raises(UserError, match="name some"):
        start(tmp_path, "other", related=True)


def read_back(setting: Setting) -> Setting:
    setting.write()
    return read_setting(setting.recipe.storage, setting.name)


def tracked(folder: Path, name: str, values: dict[int, float], *changes: str, metrics=(), tags=None) -> TrackedRun:
    """A run in MLflow as trainings leave it."""
    made = recipe(folder, name, *changes)
    uri = f"sqlite:///{folder}/runs/mlflow.db"
    run = TrackedRun.start(uri, check_store(uri, made.tracking.experiment), name, tags=tags)
    run.log_recipe(made, 1)
    for step, value in values.items():
        run.log_values({"eval/loss": value}, step)
    for step, key, value in metrics:
        run.log_values({key: value}, step)
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with an MLflow store, and its runs by name."""
    folder = tmp_path_factory.mktemp("mlflow")
    runs = {
        "first": tracked(folder, "first", {50: 2.0, 100: 1.5}, "optimizer.lr=3e-3"),
        "long": tracked(folder, "long", {50: 2.0}, "length=300 steps"),
        "unmeasured": tracked(folder, "unmeasured", {}),
        "search": tracked(folder, "search", {}, tags={"lowland.study": "search"}),
    }
    below = {"mlflow.parentRunId": runs["search"].run_id}
    tracked(folder, "search-0", {6: 4.0}, "optimizer.lr=5e-3", tags=below)
    other = "tracking.experiment=other"
    for length, key, value in (("2 epochs", "train/epoch", 0.5), ("1M tokens", "train/tokens", 250_000.0)):
        metrics = [(10, key, value)]
        runs[length] = tracked(folder, "a", {10: 2.0, 40: 1.0}, f"length={length}", other, metrics=metrics)
    return folder, runs


def test_runs_of_mlflow_are_trials(store):
    folder, runs = store
    setting = start(folder, "new", warm_start=["mlflow:lowland"])
    first, long, unmeasured = (runs[name].run_id for name in ("first", "long", "unmeasured"))
    assert [e.curve for e in setting.earlier] == [{26: 2.0, 51: 1.5}, {3: 4.0}]
    source, below = (e.source for e in setting.earlier)
    assert source == f"MLflow experiment lowland, run first ({first[:8]})", "names repeat"
    assert below.startswith("MLflow experiment lowland, run search-0 (")
    assert setting.earlier[0].parameters == {RATE: 3e-3, "1 - optimizer.betas.1": pytest.approx(0.05)}
    assert setting.warm_start == (
        f"used of MLflow experiment lowland: run first ({first[:8]}), {below.partition(', ')[2]}",
        f"skipped of MLflow experiment lowland, length is 300 steps there and 100 steps here: run long ({long[:8]})",
        f"skipped of MLflow experiment lowland, eval/loss was not measured: run unmeasured ({unmeasured[:8]})",
    )
    assert [e.source for e in start(folder, "new", warm_start=[f"mlflow:{first}"]).earlier] == [
        f"MLflow run {first}, run first ({first[:8]})"
    ]
    trials = start(folder, "new", warm_start=[f"mlflow:{runs['search'].run_id}"])
    assert [e.parameters[RATE] for e in trials.earlier] == [5e-3]


@pytest.mark.parametrize("length", ["2 epochs", "1M tokens"])
def test_a_length_in_epochs_or_tokens_is_known_by_what_was_trained(store, length):
    folder, runs = store
    setting = start(folder, "new", f"length={length}", warm_start=[f"mlflow:{runs[length].run_id}"])
    assert setting.earlier[0].curve == {13: 2.0, 51: 1.0}


def test_what_is_not_there_or_measured_something_else(tmp_path, old):
    with pytest.raises(UserError, match=r"no study 'odl' in .*; studies there: old.*mlflow:EXPERIMENT"):
        start(tmp_path, "new", warm_start=["odl"])
    with pytest.raises(UserError, match="the search itself"):
        recorded("old", old)
    with pytest.raises(UserError, match="its metric is eval/loss, to minimize; this search's is eval/accuracy"):
        start(tmp_path, "other", metric="eval/accuracy", warm_start=["old"])


def test_what_mlflow_does_not_have(store):
    folder, _ = store
    with pytest.raises(UserError, match=r"no such experiment in sqlite:.*there: lowland"):
        start(folder, "other", warm_start=["mlflow:lowlnd"])
    with pytest.raises(UserError, match=f"mlflow:{'0' * 32}: .*not found"):
        start(folder, "other", warm_start=[f"mlflow:{'0' * 32}"])


def test_a_chain_of_warm_starts_takes_each_training_once(tmp_path, old):
    second = start(tmp_path, "second", warm_start=["old"])
    second.write()
    study = open_study(second)
    simulate(study, Promotion(TICKS), Valley(), workers=1, budget=3)
    own = [t for t in study.trials() if not t.source]
    third = start(tmp_path, "third", warm_start=["second"])
    assert len(third.earlier) == len(own)
    assert "skipped of study second, it comes from study old, trial 0: name that too: trial 0" in third.warm_start
    both = start(tmp_path, "third", warm_start=["second", "old"])
    assert len(both.earlier) == len(study.trials())


WIDE = "model={config: {model_type: llama, max_position_embeddings: 64, hidden_size: 64}}"


def test_a_rate_that_is_known_elsewhere_is_moved_here(tmp_path):
    """A quarter of the width: muP's rule quadruples AdamW's rate; the search says so."""
    setting = read_back(start(tmp_path, "new", WIDE, known_lr="2e-3@width=256"))
    (moved,) = setting.bound().moved()
    assert setting.bound().priors()[RATE].centre == pytest.approx(8e-3)
    assert moved.startswith(f"prior of {RATE}: 0.002 is known at width 256, here 64: 0.008 with confidence 0.")
    assert moved in notes(setting, 1)
    with pytest.raises(UserError, match=r"the recipe's own width cannot be told"):
        start(tmp_path, "other", known_lr="2e-3@width=256")
    for wrong in ("2e-3", "2e-3@", "2e-3@depth=3", "fast@width=3", "2e-3@width", "2e-3@width=-1"):
        with pytest.raises(UserError, match=r"--known-lr .*: write the rate and at least one of"):
            start(tmp_path, "other", WIDE, known_lr=wrong)
    with pytest.raises(UserError, match=r"in alternatives: lion/optimizer\.lr, adamw/optimizer\.lr"):
        start(tmp_path, "other", WIDE, space=BRANCHES, known_lr="2e-3@width=256")


def test_what_has_no_checkpoints_and_one_metric_is_no_trial_of_such_searches(tmp_path, old):
    for given in (
        {"constraints": ["eval/loss <= 3"]},
        {"policy": "pbt"},
        {"metric": ["eval/loss", "gpu-hours"], "sampler": "tpe"},
    ):
        with pytest.raises(UserError, match="they can be no trials"):
            start(tmp_path, "new", warm_start=["old"], **given)


def test_two_studies_of_one_name_are_two_sources(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, seed in zip(folders, (3, 4), strict=True):
        folder.mkdir()
        setting = start(folder, "same").with_(seed=seed)
        setting.write()
        simulate(open_study(setting), Promotion(TICKS), Valley(), workers=1, budget=TICKS)
    setting = start(tmp_path, "new", warm_start=[str(folder / "runs" / "same") for folder in folders])
    assert len(open_study(setting).trials()) == len(setting.earlier) > 2


@pytest.mark.parametrize("name", ["global_sequences", "global_tokens", "global_images"])
def test_how_a_whole_batch_is_cut_makes_no_other_training(name):
    here = {f"batch.{name}": "64", "batch.micro_batch": "8", "scaling.workers": "1"}
    there = {**here, "batch.micro_batch": "16", "scaling.workers": "2"}
    assert differences(here, there) == []
    assert differences({**here, f"batch.{name}": "null"}, {**there, f"batch.{name}": "null"}) != []
