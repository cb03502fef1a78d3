"""What a search found, read from its storage alone."""

import io
import json
import math
import re
from datetime import datetime

import optuna
import pyarrow.csv
import pyarrow.parquet
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from recipe_files import write_recipe
from rich.console import Console
from typer.testing import CliRunner

from lowland.platform import cli
from lowland.platform.recipe import load_recipe
from lowland.platform.search.importance import importances
from lowland.platform.search.leaderboard import fates, print_studies, print_study, spent
from lowland.platform.search.plots import page
from lowland.platform.search.policies import Promotion
from lowland.platform.search.report import write_recipe as write_recipe_of
from lowland.platform.search.report import write_report
from lowland.platform.search.results import StudyResult, TrialResult, read_study, trials_in
from lowland.platform.search.setting import JOURNAL, TICKS, Setting, read_setting, study_folder
from lowland.platform.search.simulate import simulate
from lowland.platform.search.study import Study
from lowland.search_spaces import Space
from lowland.trainers.errors import UserError

LR = "optimizer.lr"
DECAY = "optimizer.weight_decay"
SPACE = {LR: FloatDistribution(1e-5, 1e-1, log=True), DECAY: FloatDistribution(0.0, 0.5)}


class Valley:
    """Best at a learning rate of 1e-3, whatever the decay; no number above 3e-2."""

    def values(self, parameters, start, end):
        away = math.log10(parameters[LR]) + 3
        return [math.nan if parameters[LR] > 3e-2 else away**2 + 1.0 / r for r in range(start + 1, end + 1)]

    def seconds(self, parameters, start, end):
        return float(end - start)


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def searched(storage, name="small", direction="minimize"):
    """A search of 12 whole trainings' length, with a failure and a trial under way."""
    study = Study(storage, name, SPACE, direction, RandomSampler(seed=0))
    policy = Promotion(TICKS)
    simulate(study, policy, Valley(), workers=2, budget=TICKS * 12)
    study.fail(study.next(policy).trial, "no space left on device")
    study.next(policy)
    return study


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A storage folder with a study as `lowland tune` leaves it."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = load_recipe(write_recipe(folder / "given"), [f"storage={folder}"])
    ranges = {
        LR: {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        DECAY: {"type": "float", "low": 0.0, "high": 0.5},
    }
    Setting(
        recipe=recipe,
        space=Space.model_validate({"description": "", "parameters": ranges}),
        metric="eval/loss",
        direction="minimize",
        trials=None,
        budget=None,
        parallel=None,
        sampler="random",
        policy="promotion",
        seed=0,
        tracking_uri="",
    ).write()
    memory = InMemoryStorage()
    searched(memory)
    journal = JournalStorage(JournalFileBackend(str(study_folder(str(folder), "small") / JOURNAL)))
    optuna.copy_study(from_study_name="small", from_storage=memory, to_storage=journal)
    return str(folder)


@pytest.fixture(scope="module")
def result(storage):
    return read_study(storage, "small")


def trial(number, curve, status="stopped", parameters=None, **changes):
    given = parameters or {"x": 0.5}
    fields = {"target": max(curve, default=0), "reason": "", "source": "", "accounts": (), "cost": 0.0}
    distributions = {
        name: FloatDistribution(0.0, 1.0) if isinstance(value, float) else CategoricalDistribution([value, "other"])
        for name, value in given.items()
    }
    times = {"began": datetime(2026, 1, 2, 3, 4), "ended": None}
    return TrialResult(number, status, given, distributions, curve, **{**fields, **times, **changes})


def study_of(*trials, direction="minimize", full=9):
    return StudyResult("a", "eval/loss", direction, full, trials)


def text_of(printer, *arguments, width=120):
    stream = io.StringIO()
    printer(*arguments, Console(file=stream, width=width))
    return stream.getvalue()


def best_recipe_of(result, folder):
    write_recipe_of(result, folder / "best.yaml")
    return load_recipe(folder / "best.yaml")


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["study", *map(str, arguments)])


def test_whole_trainings_come_first_and_then_the_better_value():
    trials = [trial(0, {3: 0.1}), trial(1, {3: 0.9, 9: 0.5}), trial(2, {9: 0.4}), trial(3, {3: math.inf}), trial(4, {})]
    assert [t.number for t in study_of(*trials).ranked] == [2, 1, 0]
    assert [t.number for t in study_of(*trials, direction="maximize").ranked] == [1, 2, 0]
    assert study_of(trial(0, {9: 1e308}), trial(1, {3: -math.inf}), direction="maximize").best is None


def test_trials_are_compared_where_half_of_them_were():
    trials = [trial(0, {3: 1.0, 9: 1.0}), trial(1, {3: 1.0, 9: 1.0}), trial(2, {3: 1.0}), trial(3, {3: 1.0})]
    assert study_of(*trials).common == 9
    assert study_of(*trials, trial(4, {3: 1.0})).common == 3
    assert study_of().common == 0


def test_everything_is_read_from_the_journal(storage, result):
    assert (result.metric, result.full) == ("eval/loss", TICKS)
    states = [t.status for t in result.trials]
    assert (states.count("failed"), states.count("running")) == (1, 1)
    assert result.best.status == "finished"
    finite = [t for t in result.trials if t.status == "finished" and t.value is not None]
    assert (
        result.best.value
        == min(t.value for t in finite)
        == pytest.approx((math.log10(result.best.parameters[LR]) + 3) ** 2 + 1 / TICKS)
    )
    assert all(t.parameters[LR] > 3e-2 for t in result.trials if t.unusable)
    assert result.trainings == pytest.approx(12, abs=1), "the budget, which the last segments may exceed"


def test_parameters_of_alternatives_that_were_not_chosen_do_not_count(storage, tmp_path):
    alternatives = {name: {LR: {"type": "float", "low": 1e-5, "high": 1.0}} for name in ("adamw", "lion")}
    space = {"optimizer.name": {"type": "branch", "alternatives": alternatives}}
    setting = read_setting(storage, "small")
    recipe = setting.recipe.model_copy(update={"storage": str(tmp_path)})
    space = Space.model_validate({"description": "", "parameters": space})
    setting = setting.with_(recipe=recipe, space=space)
    setting.write()
    drawn = setting.bound().distributions()
    trials = JournalStorage(JournalFileBackend(str(setting.folder / JOURNAL)))
    study = Study(trials, "small", drawn, "minimize", RandomSampler(seed=0))
    for _ in range(12):
        segment = study.next(Promotion(TICKS))
        study.report(segment.trial, segment.end, 1.0 / (1 + segment.trial))
    result = read_study(str(tmp_path), "small")
    for one in result.trials:
        chosen = one.parameters["optimizer.name"]
        assert set(one.parameters) == set(one.distributions) == {"optimizer.name", f"{chosen}/{LR}"}
    assert {one.parameter for one in importances(result)} == set(drawn)
    best = result.best.parameters
    assert best_recipe_of(result, tmp_path).optimizer.lr == best[f"{best['optimizer.name']}/{LR}"]
    assert "Slice" in page(result, importances(result))
    cells = re.search(rf"^lion/{LR} (.*)$", text_of(print_study, result, []), re.MULTILINE)[1].split()
    assert [cell == "-" for cell in cells] == [t.parameters["optimizer.name"] != "lion" for t in result.ranked[:4]]


def test_importance_is_that_of_what_decides(result):
    found = importances(result)
    assert [one.parameter for one in found] == [LR, DECAY]
    assert sum(one.mean for one in found) == pytest.approx(1)
    assert found[0].mean - 2 * found[0].deviation > 0.5 > found[1].mean + 2 * found[1].deviation
    assert found == importances(result), "the same again"


def test_importance_of_noise_is_not_known():
    values = [trial(n, {9: float((7 * n) % 11)}, parameters={"x": (n % 5) / 5, "y": (n % 7) / 7}) for n in range(20)]
    assert all(one.deviation > 0.3 * one.mean for one in importances(study_of(*values)))
    assert importances(study_of(*values[:7])) == []
    assert importances(study_of(*(trial(n, {9: 1.0}, parameters={"x": n / 9}) for n in range(9)))) == []


def test_importance_is_the_same_if_metric_and_direction_are_turned():
    trials = [trial(n, {9: (n / 20) ** 2}, parameters={"x": n / 20, "y": (7 * n % 20) / 20}) for n in range(20)]
    turned = [trial(t.number, {9: -t.curve[9]}, parameters=t.parameters) for t in trials]
    assert importances(study_of(*trials)) == importances(study_of(*turned, direction="maximize"))


def test_trials_without_a_number_count_as_the_worst():
    """The only thing that x decides is whether there is a number."""
    trials = [
        trial(n, {3: math.inf if n % 2 else 1.0}, parameters={"x": 0.1 + 0.8 * (n % 2), "y": (7 * n % 20) / 20})
        for n in range(20)
    ]
    assert importances(study_of(*trials))[0].parameter == "x"


def test_what_became_of_trials_is_told_with_reasons():
    study = study_of(
        trial(0, {9: 0.5}, "finished"),
        trial(1, {3: 0.5}),
        trial(2, {3: 0.6}),
        trial(3, {3: math.inf}, reason="out of memory: 2 GiB"),
        trial(4, {3: math.inf}),
        trial(5, {3: 0.5}, "paused"),
        trial(6, {}, "failed", reason="disk full"),
        trial(7, {3: 0.5}, "running", target=9),
        trial(8, {9: 0.5}, source="mlflow:1"),
    )
    assert sorted(fates(study)) == [
        "1 failed, disk full (6)",
        "1 gave no number at 33% of a training (4)",
        "1 paused at 33% of a training (5)",
        "1 running, to 100% of a training (7)",
        "1 stopped, out of memory: 2 GiB (3)",
        "1 taken from earlier trainings (8)",
        "1 trained to the end (0)",
        "2 stopped at 33% of a training, since others were better there (1, 2)",
    ]
    assert list(fates(study_of())) == ["none began"]
    assert list(spent(study_of(trial(0, {9: 0.5}), trial(1, {3: 0.5}), trial(2, {9: 1.0}, source="a")))) == [
        "1.3 whole trainings, by length"
    ]


def test_what_was_spent_is_the_ledgers():
    account = {
        "seconds": 1800.0,
        "cpus": 8.0,
        "gpus": 2,
        "startup": 180.0,
        "attempts": 2,
        "training": 900.0,
        "step": 100,
        "tokens": 5e6,
        "epochs": 0.5,
        "trainings": 1.0,
    }
    assert list(spent(study_of(trial(0, {9: 0.5}, accounts=[account])))) == [
        "1.0 whole trainings, by length",
        "1.00 GPU-hours",
        "4.00 CPU-hours; jobs took 30:00 in all",
        "5.00 M tokens",
        "50% of the time trained, 10% was start-up; workers were lost 1 times",
    ]


def test_only_parameters_that_differ_are_compared():
    trials = [trial(n, {9: float(n)}, parameters={"x": n / 10, "kind": "[a]", "same": 0.5}) for n in range(3)]
    text = text_of(print_study, study_of(*trials), [])
    assert re.search(r"^ *1 +0 +0 +100% +stopped$", text, re.MULTILINE)
    assert re.search(r"^x +0 +0\.1 +0\.2$", text, re.MULTILINE)
    assert "same" not in text
    assert "kind" not in text
    assert "Importances are told from 8 trials on" in text


def test_studies_are_listed_with_their_trials_by_state():
    text = text_of(print_studies, [study_of(trial(0, {9: 0.25}, "finished"), trial(1, {}, "running"))])
    assert " ".join(text.splitlines()[1].split()) == "a eval/loss 0.25 2026-01-02 03:04 2 1 running, 1 finished"


def test_the_best_recipe_is_one_to_train(storage, result, tmp_path):
    shown = invoke("show", "small", "--storage", storage, "--recipe", tmp_path / "best.yaml")
    assert shown.exit_code == 0, shown.output
    recipe = load_recipe(tmp_path / "best.yaml")
    assert recipe.optimizer.lr == result.best.parameters[LR]
    assert recipe.name == f"small-trial-{result.best.number:04}"
    base = result.setting.recipe.model_dump(mode="json")
    changed = {"name": recipe.name, "optimizer": {**base["optimizer"], **recipe.optimizer.model_dump(mode="json")}}
    assert recipe.model_dump(mode="json") == {**base, **changed}
    printed = invoke("show", "small", "--storage", storage)
    assert (tmp_path / "best.yaml").read_text() in printed.output


def test_the_plots_need_nothing_else(result, tmp_path):
    text = page(result, importances(result))
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings == [
        "History", "Learning curves", "Importance", "Parallel coordinates", "Slice", "Pareto front"
    ]  # fmt: skip
    assert not re.search(r"<(script|link)[^>]*(src|href)=", text)
    assert text.count("Plotly.newPlot(") >= len(headings)
    assert "No trial has a value yet" in page(study_of(), [])


def test_optuna_says_nothing_of_studies_that_are_only_scratch(result, caplog):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    try:
        optuna.create_study()
        said = len(caplog.records)
        page(result, importances(result))
    finally:
        optuna.logging.disable_propagation()
    assert said > 0
    assert caplog.records[said:] == []


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_plots_of_choices_that_are_lists():
    trials = [trial(n, {9: float(n)}, parameters={"betas": [0.9, 0.95], "x": n / 10}) for n in range(3)]
    assert "[0.9, 0.95]" in page(study_of(*trials), [])


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_table_has_a_row_for_each_measurement(storage, result, tmp_path, suffix):
    out = tmp_path / f"new/trials.{suffix}"
    exported = invoke("export", "small", "--storage", storage, "--out", out)
    assert exported.exit_code == 0, exported.output
    table = pyarrow.parquet.read_table(out) if suffix == "parquet" else pyarrow.csv.read_csv(out)
    rows = table.to_pylist()
    assert len(rows) == sum(max(1, len(t.curve)) for t in result.trials)
    for one in result.trials:
        own = [row for row in rows if row["trial"] == one.number]
        assert {row["resource"]: row["value"] for row in own if row["resource"] is not None} == one.curve
        assert {row[f"parameter.{LR}"] for row in own} == {one.parameters[LR]}
    assert {row["reason"] for row in rows} - {"", None} == {"no space left on device"}


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_parameters_that_are_not_all_of_a_kind_are_json(tmp_path):
    kinds = [["a", 1], [1, 2.5], [True, False], [[1, 2], None]]
    names = ["mixed", "numbers", "flags", "lists"]
    trials = [trial(n, {}, parameters=dict(zip(names, [k[n] for k in kinds], strict=True))) for n in range(2)]
    folder = tmp_path / "report"
    write_report(study_of(*trials), folder)
    columns = pyarrow.parquet.read_table(folder / "trials.parquet").to_pydict()
    assert [columns[f"parameter.{name}"] for name in names] == [
        ['"a"', "1"],
        [1.0, 2.5],
        [True, False],
        ["[1, 2]", "null"],
    ]


def test_long_names_keep_their_ends_in_the_parallel_coordinates():
    names = ["1 - optimizer.betas.0", "1 - optimizer.betas.1", "x"]
    trials = [trial(n, {9: float(n)}, parameters=dict.fromkeys(names, n / 10)) for n in range(3)]
    text = page(study_of(*trials), [])
    shown = re.search(r'"ticktext":(\[[^\]]*betas[^\]]*\])', text)[1]
    assert json.loads(shown) == ["eval/loss", "…- optimizer.betas.0", "…- optimizer.betas.1", "x"]


def test_a_report_is_all_of_it(result, tmp_path):
    files = write_report(result, tmp_path / "report")
    assert [file.name for file in files] == ["summary.txt", "plots.html", "best-recipe.yaml", "trials.parquet"]
    assert all(file.stat().st_size for file in files)
    load_recipe(tmp_path / "report" / "best-recipe.yaml")
    assert [file.name for file in write_report(study_of(), tmp_path / "none")] == [
        "summary.txt",
        "plots.html",
        "trials.parquet",
    ]


def test_a_study_in_any_storage_is_read():
    storage = InMemoryStorage()
    searched(storage, "b")
    assert {t.status for t in trials_in(storage, "b")} == {"finished", "stopped", "paused", "running", "failed"}
    assert trials_in(storage, "c") == []


def test_mistakes_say_what_there_is(storage, tmp_path, result):
    assert invoke("list", "--storage", tmp_path).output == f"No studies in {tmp_path}.\n"
    assert "small" in invoke("list", "--storage", storage).output
    wrong = invoke("show", "smal", "--storage", storage)
    assert isinstance(wrong.exception, UserError)
    assert "small" in str(wrong.exception)
    absent = invoke("show", "small", "--storage", storage, "--trial", "99")
    assert isinstance(absent.exception, UserError)
    ending = invoke("export", "small", "--storage", storage, "--out", "trials.json")
    assert "must end in .parquet or .csv" in str(ending.exception)
    (tmp_path / "file").touch()
    for option in ("--plots", "--recipe"):
        written = invoke("show", "small", "--storage", storage, option, tmp_path / "file" / "below")
        assert isinstance(written.exception, UserError), option
