"""Several metrics and constraints: read from text, told to Optuna, shown as fronts, and never the best if broken."""

import io
import math
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import write_recipe
from rich.console import Console
from support.full import full
from typer.testing import CliRunner

from lowland.platform import cli
from lowland.platform.recipe import load_recipe
from lowland.platform.search.best import best_recipe
from lowland.platform.search.compatibility import notes, read_objectives
from lowland.platform.search.export import as_table
from lowland.platform.search.jobs import Job, Outcome, Resources
from lowland.platform.search.leaderboard import fates, print_study
from lowland.platform.search.objectives import Bound, Objective, costs, front
from lowland.platform.search.plots import page
from lowland.platform.search.population import Population
from lowland.platform.search.report import write_report
from lowland.platform.search.results import StudyResult, read_study
from lowland.platform.search.samplers.observations import usable
from lowland.platform.search.scaling import growth_lines, growths
from lowland.platform.search.search import Search
from lowland.platform.search.setting import Setting, existing_study
from lowland.platform.search.start import begin, changed, open_study, policy_of
from lowland.trainers.errors import UserError

LR = "optimizer.lr"
SPACE = """
description: A rate
parameters:
  optimizer.lr: {type: float, low: 1.0e-5, high: 1.0e-1, log: true}
"""


def test_metrics_and_constraints_are_read_from_text():
    assert Objective.parse("eval/loss") == Objective("eval/loss", "minimize")
    assert Objective.parse("acc:maximize") == Objective("acc", "maximize")
    assert read_objectives(["acc"], "maximize") == [Objective("acc", "maximize")]
    assert read_objectives(["acc:maximize", "gpu-hours"], "minimize")[1] == Objective("gpu-hours")
    memory, accuracy = Bound.parse("perf/gpu_memory_gib<=70"), Bound.parse(" acc >= 0.8 ")
    assert (memory.excess(71.5), memory.excess(70.0), memory.excess(math.nan)) == (1.5, 0.0, math.inf)
    assert (accuracy.excess(0.5), accuracy.excess(0.9)) == (pytest.approx(0.3), pytest.approx(-0.1))
    assert (str(memory), str(accuracy)) == ("perf/gpu_memory_gib <= 70", "acc >= 0.8")


@pytest.mark.parametrize("text", ["acc:up", ":maximize", ""])
def test_metrics_that_are_none(text: str):
    with pytest.raises(UserError, match="--metric"):
        Objective.parse(text)


@pytest.mark.parametrize("text", ["memory < 70", "memory <= much", "<= 70", "memory <= inf", "memory 70"])
def test_constraints_that_are_none(text: str):
    with pytest.raises(UserError, match="write a metric, <= or >=, and a number"):
        Bound.parse(text)


def test_what_a_trial_took():
    accounts = [{"seconds": 1800.0, "gpus": 4, "cpus": 8.0}, {"seconds": 1800.0, "gpus": 4, "cpus": 8.0}]
    assert costs(accounts) == {"gpu-hours": 4.0, "cpu-hours": 8.0, "seconds": 3600.0}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int, int]]):
    chosen = front(dict(enumerate(points)))
    for number, point in enumerate(points):
        better = [p for p in points if p != point and all(a <= b for a, b in zip(p, point, strict=True))]
        assert (number in chosen) == (not better)


def recipe_in(folder: Path) -> Any:
    return load_recipe(write_recipe(folder / "given"), [f"storage={folder}", "name=study"])


def beginning(folder: Path, **changes: Any) -> Setting:
    (folder / "rate.yaml").write_text(SPACE)
    return begin(recipe_in(folder), [str(folder / "rate.yaml")], **{"trials": 12, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"metric": ["eval/loss", "eval/loss:maximize"]}, "--metric eval/loss is given twice"),
        ({"metric": ["eval/loss", "gpu-hours"]}, "hold no GPU; take cpu-hours"),
        ({"metric": ["eval/loss", "seconds"], "direction": "maximize"}, "write the direction after the metric"),
        ({"metric": ["eval/loss", "seconds"], "sampler": "multi-fidelity"}, "multi-fidelity takes one metric"),
        ({"metric": ["eval/loss", "seconds"], "sampler": "cmaes"}, "take tpe, nsga2, gp"),
        ({"metric": ["eval/loss", "seconds"], "policy": "promotion"}, "with several metrics take --policy none"),
        ({"metric": ["eval/loss", "seconds"], "policy": "pbt"}, "with several metrics take --policy none"),
        ({"constraints": ["gpu-hours <= 1"]}, "hold no GPU"),
        ({"constraints": ["eval/loss"]}, "write a metric, <= or >=, and a number"),
        ({"policy": "pbt", "trials": None, "budget": "4 trainings"}, "--trials is the size of the population"),
        ({"policy": "pbt", "trials": 1}, "give at least 2"),
        ({"policy": "pbt", "intervals": 60}, "between 2 and 51"),
        ({"policy": "pbt", "perturb": ["model.path"]}, "the space has no such parameter; may change: optimizer.lr"),
        ({"perturb": [LR]}, "--perturb and --intervals are of --policy pbt alone"),
        ({"policy": "pbtt"}, "pbt, none"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], text: str, tmp_path: Path):
    with pytest.raises(UserError) as caught:
        beginning(tmp_path, **changes)
    assert text in str(caught.value)


def test_what_follows_from_several_metrics_and_is_noted(tmp_path: Path):
    setting = beginning(tmp_path, metric=["eval/loss", "eval/accuracy:maximize"])
    assert (setting.sampler, setting.policy) == ("tpe", "none")
    assert (setting.metric, setting.direction) == ("eval/loss", "minimize")
    assert setting.others == (Objective("eval/accuracy", "maximize"),)
    single = beginning(tmp_path, sampler="random", constraints=["eval/loss<=3"])
    assert (single.sampler, single.policy) == ("random", "promotion")
    told = " ".join(notes(single))
    assert "random does not see constraints" in told
    assert "eval/loss gets better by training" in told
    assert list(notes(beginning(tmp_path, constraints=["perf/step_seconds <= 3"]))) == []


def test_a_population_stays_as_large_as_it_began(tmp_path: Path):
    setting = beginning(tmp_path, policy="pbt", trials=4)
    setting.write()
    assert changed(str(tmp_path), "study", trials=4).trials == 4
    with pytest.raises(UserError, match="stays as it began"):
        changed(str(tmp_path), "study", trials=8)


class Runs:
    """Trials of which only parameters matter."""

    def begin(self, segment: Any, parameters: Any, origin: Any) -> Job:
        return Job(Resources(1, 1.0, 0, None, "PACK"), {"lr": parameters[LR], "end": segment.end})

    def ended(self, number: int, outcome: Outcome, fate: Any) -> None:
        pass

    rests = replaced = lambda self, number: None
    settle = ended


def trained(job: Job) -> Outcome:
    """Higher rates are better and slower, and take more memory; the highest diverge."""
    place = math.log10(job.task["lr"]) + 5
    if place > 3.6:
        return Outcome("diverged", "loss is not finite", seconds=1.0)
    metrics = {"eval/loss": 4 - place + 3 / job.task["end"], "speed": 10 - place**2, "memory": 10 * place}
    result = {"metrics": metrics, "step": job.task["end"], "seconds": 1.0}
    return Outcome("reached", result=result, seconds=60 * (1 + place))


def search(setting: Setting) -> StudyResult:
    """Searches to the end, and reads what was found."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    setting.write()
    also = [*(o.metric for o in setting.others), *(b.metric for b in setting.bounds)]
    study = open_study(setting)
    held = Search(
        study,
        policy_of(setting),
        Runs(),
        lambda _: [],
        metric=setting.metric,
        also=also,
        most=setting.trials,
        budget=None,
    )
    while not isinstance(answer := held.next(), str):
        held.ended(answer[0].trial, trained(answer[1]))
    assert answer == "over"
    assert held.problem is None, held.problem
    return read_study(setting.recipe.storage, setting.name)


SEVERAL = ["eval/loss", "speed:maximize", "seconds"]


@pytest.mark.parametrize("sampler", ["tpe", full("nsga2"), "gp", full("random")])
def test_the_front_of_a_search_is_what_optuna_finds_too(sampler: str, tmp_path: Path):
    setting = beginning(tmp_path, metric=SEVERAL, sampler=sampler, constraints=["memory <= 30"], trials=12)
    found = search(setting)
    assert len(found.trials) == 12
    assert any(trial.unusable for trial in found.trials), "some rates diverge"
    assert any(trial.broken for trial in found.trials), "some break the constraint"
    optunas = open_study(setting)._study.best_trials
    assert [trial.number for trial in sorted(found.front, key=lambda t: t.number)] == [t.number for t in optunas]
    assert all(trial.measured[51]["memory"] <= 30 for trial in found.front)
    assert found.best is found.front[0]
    assert [trial.number for trial in found.ranked[: len(found.front)]] == [trial.number for trial in found.front]


def test_a_study_with_several_metrics_as_people_read_it(tmp_path: Path):
    found = search(beginning(tmp_path, metric=["eval/loss", "seconds"], trials=10))
    with pytest.raises(UserError, match="choose a trial of the front by --trial"):
        best_recipe(found)
    chosen = found.front[-1].number
    assert f"lr: {found.front[-1].parameters[LR]!r}" in best_recipe(found, chosen)
    with pytest.raises(UserError, match="has 10 trials"):
        best_recipe(found, 10)
    stream = io.StringIO()
    print_study(found, [], Console(file=stream, width=160))
    assert "the lowest eval/loss and the lowest seconds" in stream.getvalue()
    assert "finished, front" in stream.getvalue()
    numbers = ", ".join(str(trial.number) for trial in found.front)
    assert f"Pareto front, whole trainings that no other beats in all metrics: {numbers}" in stream.getvalue()
    result = CliRunner().invoke(cli.app, ["study", "show", "study", "--storage", str(tmp_path)])
    assert "No best recipe: study 'study' compares by 2 metrics" in result.output.replace("\n", " ")
    file = tmp_path / "chosen.yaml"
    arguments = ["study", "show", "study", "--storage", str(tmp_path), "--trial", str(chosen), "--recipe", str(file)]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert f"study-trial-{chosen:04}" in file.read_text()
    assert page(found, []).count("<h2>Pareto front</h2>") == 1
    names = {str(p.relative_to(tmp_path / "report")) for p in write_report(found, tmp_path / "report")}
    assert {f"front/trial-{trial.number:04}.yaml" for trial in found.front} <= names
    assert "best-recipe.yaml" not in names
    assert as_table(found)["metric.seconds"].to_pylist() == [
        t.measured[51]["seconds"] if not t.unusable else None for t in found.trials
    ]


@pytest.mark.parametrize("sampler", ["multi-fidelity", "tpe", full("gp")])
@pytest.mark.parametrize("policy", ["promotion", "none"])
def test_what_breaks_a_constraint_is_stopped_told_and_never_the_best(sampler: str, policy: str, tmp_path: Path):
    found = search(beginning(tmp_path, sampler=sampler, policy=policy, constraints=["memory <= 20"], trials=18))
    broken = [trial for trial in found.trials if trial.broken]
    assert broken
    assert found.best is not None
    best = min((t for t in found.trials if t.curve and not t.broken and t.reached == 51), key=lambda t: t.value or 9.0)
    assert found.best.number == best.number
    assert min(t.value for t in broken if t.value is not None) < found.best.value, "what is better is not allowed"
    first = 3 if policy == "promotion" else 51
    assert {trial.reached for trial in broken} == {first}, "stopped where it was first seen"
    told = open_study(found.setting)._study.get_trials()  # type: ignore[arg-type]
    for trial in broken:
        assert told[trial.number].constraints["memory <= 20"] == trial.measured[first]["memory"] - 20
        assert usable(told[trial.number]) is False
    lines = " ".join(fates(found))
    assert "broke memory <= 20" in lines
    assert as_table(found)["broken"].to_pylist().count(None) < len(as_table(found)["broken"])
    assert best_recipe(found)


def test_proposals_keep_away_from_where_constraints_break(tmp_path: Path):
    """Of the last fifteen proposals, the random ones aside, few break it, though the metric is better there."""
    found = search(beginning(tmp_path, constraints=["memory <= 20"], trials=30))
    late = [trial for trial in found.trials[15:] if trial.number % 8]
    assert sum(math.log10(t.parameters[LR]) + 5 > 2.1 for t in late) <= 3
    free = random.Random(0)
    drawn = [free.uniform(0, 4) for _ in late]
    assert sum(place > 2.1 for place in drawn) > 3, "which chance does not do"


def test_if_all_break_a_constraint_there_is_no_best(tmp_path: Path):
    found = search(beginning(tmp_path, constraints=["memory <= -1"], trials=5))
    assert found.best is None
    assert found.ranked, "they are shown"
    with pytest.raises(UserError, match=r"no trial with a value of eval/loss that keeps memory <= -1 yet"):
        best_recipe(found)


def test_a_metric_that_never_appears_is_told_after_the_first_segment(tmp_path: Path):
    setting = beginning(tmp_path, constraints=["memori <= 1"])
    setting.write()
    held = Search(
        open_study(setting), policy_of(setting), Runs(), lambda _: [], metric="eval/loss", also=["memori"], most=3,
        budget=None,
    )  # fmt: skip
    segment, job = held.next()  # type: ignore[misc]
    held.ended(segment.trial, trained(job))
    assert "memori: trainings of this recipe do not give it; they give cpu-hours, eval/loss" in str(held.problem)


def test_another_number_of_metrics_is_another_study(tmp_path: Path):
    setting = beginning(tmp_path, metric=["eval/loss", "speed:maximize"])
    open_study(setting)
    with pytest.raises(UserError, match=r"to minimize, maximize, this search to minimize its metric"):
        open_study(setting.with_(others=()))


def test_settings_are_kept(tmp_path: Path):
    setting = beginning(tmp_path, metric=SEVERAL, constraints=["memory <= 30"])
    setting.write()
    assert existing_study(str(tmp_path), "study") == setting


def test_how_parameters_grow_with_cost_along_the_front(tmp_path: Path):
    """Higher rates are better and slower: by hand from the trainings that no other beats in value and cost."""
    found = search(beginning(tmp_path, policy="none", sampler="pareto", trials=10))
    whole = sorted((t.cost, t.value, t.parameters[LR]) for t in found.trials if not t.unusable)
    best, points = math.inf, []
    for cost, value, rate in whole:
        if value is not None and value < best:
            best = value
            points.append((math.log(cost), math.log(rate)))
    grown, count = growths(found)
    assert count == len(points) >= 3
    middle = [sum(column) / len(points) for column in zip(*points, strict=True)]
    slope = sum((x - middle[0]) * (y - middle[1]) for x, y in points) / sum((x - middle[0]) ** 2 for x, _ in points)
    assert [(one.parameter, one.slope) for one in grown] == [(LR, pytest.approx(slope))]
    assert list(growth_lines(found)) == [f"optimizer.lr grows as cost^{slope:.2f}"]


def test_the_command_line_says_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    heard: list[Setting] = []

    def hears(setting: Setting, **_: Any) -> Any:
        heard.append(setting)
        raise UserError("enough")

    monkeypatch.setattr("lowland.platform.search.tune.tune", hears)
    (tmp_path / "rate.yaml").write_text(SPACE)
    recipe = ["tune", str(write_recipe(tmp_path / "given")), "--set", f"storage={tmp_path}", "--trials", "4"]
    common = [*recipe, "--space", str(tmp_path / "rate.yaml")]
    several = [
        "--metric",
        "eval/loss",
        "--metric",
        "speed:maximize",
        "--constraint",
        "memory <= 3",
        "--name",
        "several",
    ]
    population = ["--policy", "pbt", "--intervals", "5", "--perturb", LR, "--name", "population"]
    for arguments in (several, population, ["--metric", "acc", "--direction", "maximize"]):
        CliRunner().invoke(cli.app, [*common, *arguments])
    of_several, of_population, single = heard
    assert of_several.others == (Objective("speed", "maximize"),)
    assert of_several.constraints == ("memory <= 3",)
    policy = policy_of(of_population)
    assert isinstance(policy, Population)
    assert (policy.size, policy.intervals, of_population.perturb) == (4, 5, (LR,))
    assert (single.metric, single.direction, single.others) == ("acc", "maximize", ())
