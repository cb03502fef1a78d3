"""Comparisons with trainings that are played: what is trained, on which data, what is left, and what is said of it."""

import io
import math
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from recipe_files import BASE, write_recipe
from rich.console import Console
from typer.testing import CliRunner

from lowland.platform.cli import app
from lowland.platform.comparison.compare import _refuse_missing
from lowland.platform.comparison.plan import Comparison, Kind, read_comparison
from lowland.platform.comparison.report import metrics_of, print_result, write_report
from lowland.platform.comparison.results import ComparisonResult, read_result
from lowland.platform.comparison.stages import read_stage, seeds, storage_of, tuning, unfinished
from lowland.platform.comparison.start import begin
from lowland.platform.recipe import Recipe, load_recipe
from lowland.platform.search.choices import make_policy, make_sampler
from lowland.platform.search.jobs import Job, Outcome, Resources
from lowland.platform.search.search import Search
from lowland.platform.search.setting import TICKS, Setting, read_setting
from lowland.platform.search.start import open_study
from lowland.platform.search.trials import Segment
from lowland.trainers.errors import RunError, UserError

KINDS: tuple[Kind, ...] = ("tuning", "seeds")
Losses = Callable[[str, Mapping[str, Any]], float]
"""Of a study and parameters; nan diverges."""
ARMS = ["adamw", "lion"]
LION = {
    "optimizer.lr": 2e-3,
    "optimizer.weight_decay": 0.2,
    "1 - optimizer.betas.0": 0.1,
    "1 - optimizer.betas.1": 0.01,
}
SPARSE = BASE + "seed: 2\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(write_recipe(tmp_path, SPARSE), [f"storage={tmp_path / 'runs'}"])


def compared(recipe: Recipe, **changes: Any) -> Comparison:
    return begin([recipe], **{"optimizers": ARMS, "trials": 3, "seeds": 3, "sampler": "random", **changes})


class Death(Exception):
    """A driver that dies."""


class Played:
    """Trainings that are only noted; the driver dies after some."""

    def __init__(self, losses: Losses, lives: int = 10**6) -> None:
        self.losses, self.lives = losses, lives
        self.trained: list[tuple[str, int, int]] = []

    def begin(self, segment: Segment, parameters: Mapping[str, Any], origin: Any = None) -> Job:
        return Job(Resources(1, 1.0, 0, None, "PACK"), {"parameters": dict(parameters), "segment": segment})

    def ended(self, number: int, outcome: Outcome, fate: Any) -> None: ...

    def rests(self, number: int) -> None: ...

    def settle(self, number: int, outcome: Outcome, fate: Any) -> None: ...

    def outcome(self, study: str, job: Job) -> Outcome:
        segment = job.task["segment"]
        loss = self.losses(study, job.task["parameters"])
        self.trained.append((study, segment.trial, segment.end))
        if math.isnan(loss):
            return Outcome("diverged", "the loss is not finite", attempts=1, seconds=1.0)
        if math.isinf(loss):
            return Outcome("failed", "a worker died", attempts=1, seconds=1.0)
        metrics = {"eval/loss": loss + 1 / segment.end - 1 / TICKS, "perf/gpu_memory_gib": 1.5}
        result = {"metrics": metrics, "step": segment.end, "seconds": 2.0 * segment.end, "startup": 0.5}
        return Outcome("reached", result=result, attempts=1, seconds=3.0 * segment.end)


def search(setting: Setting, played: Played) -> None:
    """As `lowland tune` leads a search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    setting.with_(status="running").write()
    why_not, policy = setting.bound().why_not, make_policy(setting.policy, TICKS)
    held = Search(open_study(setting), policy, played, why_not, metric="eval/loss", most=setting.trials, budget=None)
    while not isinstance(answer := held.next(), str):
        if played.lives == 0:
            raise Death
        played.lives -= 1
        segment, job = answer
        held.ended(segment.trial, played.outcome(setting.name, job))
    setting.with_(status="finished").write()


def lead(comparison: Comparison, played: Played) -> ComparisonResult:
    """As `lowland compare` leads a comparison."""
    plan = comparison.plan
    comparison.write()
    for kind in KINDS:
        for arm in plan.ordered:
            if (setting := unfinished(plan, arm, kind)) is not None:
                search(setting, played)
    return read_result(plan)


def steady(study: str, parameters: Mapping[str, Any]) -> float:
    """Tuning wants a rate of 1e-3; of the seeds lion's are better by 0.2, 0.3 and 0.4."""
    if "seed" not in parameters:
        return abs(math.log10(parameters["optimizer.lr"]) + 3)
    return 1.0 + parameters["seed"] / 10 - (study.startswith("lion") * (1 + parameters["seed"])) / 10


def test_each_optimizer_is_searched_over_its_own_space(recipe: Recipe):
    plan = compared(recipe, optimizers=["adamw", "sam", "lion+ema"], spaces=["auto", "lion-ema=batch"]).plan
    assert (plan.name, plan.base, plan.ordered) == ("adamw-vs-sam-vs-lion-ema", "adamw", ["adamw", "sam", "lion-ema"])
    driven = {name: {path for entry in arm.space.entries() for path in entry.paths} for name, arm in plan.arms.items()}
    assert "optimizer.sam.rho" in driven["sam"]
    assert driven["adamw"] == driven["sam"] & driven["adamw"] < driven["sam"]
    assert {"optimizer.ema.half_life", "batch.accumulation"} <= driven["lion-ema"]
    assert tuning(plan, "lion-ema").bound().space.parameters["optimizer.name"].value == "lion"  # type: ignore[union-attr]


def test_recipes_are_arms_by_their_names_each_with_what_auto_makes_of_it(tmp_path: Path, recipe: Recipe):
    other = load_recipe(
        write_recipe(tmp_path, SPARSE), [f"storage={recipe.storage}", "name=other", "optimizer={name: sgd, lr: 0.1}"]
    )
    plan = begin([recipe, other], trials=2, seeds=2).plan
    assert plan.name == "small-vs-other"
    assert "1 - optimizer.momentum" in plan.arms["other"].space.parameters
    assert "1 - optimizer.momentum" not in plan.arms["small"].space.parameters
    assert plan.seeds == (1, 3), "2 is the recipes' own"


@pytest.mark.parametrize(
    ("evaluation", "rows"),
    [("{}", (0, 5, 10)), ("{max_sequences: 3}", (0, 1, 3)), ("{skip_sequences: 4, max_sequences: 4}", (4, 6, 8))],
)
def test_what_is_reported_did_not_choose(recipe: Recipe, tmp_path: Path, evaluation: str, rows: tuple[int, int, int]):
    """Of the ten held-out sequences those that are used are divided between the search and the report."""
    recipe = load_recipe(tmp_path / "recipe.yaml", [f"storage={recipe.storage}", f"evaluation={evaluation}"])
    plan = compared(recipe).plan
    chosen, reported = tuning(plan, "lion"), seeds(plan, "lion", LION)
    first, middle, end = rows
    for setting, start, stop in ((chosen, first, middle), (reported, middle, end)):
        held = setting.recipe.evaluation
        assert (held.skip_sequences, held.max_sequences) == (start, stop - start)
    assert reported.recipe.optimizer.lr == 2e-3
    assert (reported.policy, reported.sampler, reported.trials) == ("none", "grid", 3)
    assert plan.cautions == []


def test_the_studies_lie_in_the_comparisons_folder_and_are_recorded_beside_each_other(recipe: Recipe):
    plan = compared(recipe, name="mine").plan
    assert tuning(plan, "adamw").folder == Path(recipe.storage) / "mine" / "adamw-tuning"
    uris = {tuning(plan, arm).recipe.tracking.uri for arm in ARMS}
    assert uris == {f"sqlite:///{recipe.storage}/mlflow.db"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ["adamw"]}, "give two at least"),
        ({"optimizers": ["adamw", "adamw"]}, "adamw is there twice"),
        ({"optimizers": ["adamw", "adamww"]}, "'adamww' has no space; nearest: adamw"),
        ({"optimizers": ["adamw", "lion+soap"]}, "are two optimizers"),
        ({"optimizers": ()}, "needs two recipes"),
        ({"seeds": 1}, "a spread needs at least 2"),
        ({"trials": None}, "tuning needs an end"),
        ({"budget": "3 apples"}, "write a positive number"),
        ({"policy": "best"}, "--policy best: there are"),
        ({"policy": "pbt"}, "cannot be trained anew with other seeds"),
        ({"sampler": "best"}, "--sampler best: there are"),
        ({"direction": "up"}, "minimize or maximize"),
        ({"parallel": "0"}, "--parallel 0"),
        ({"spaces": ["tam=batch"]}, "'tam' is none of adamw, lion"),
        ({"spaces": ["adamw"]}, "driven by"),
        ({"name": "a b"}, "--name a b"),
        ({"resume": True}, "no comparison 'adamw-vs-lion'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_compared_is_refused_before_anything_starts(recipe: Recipe, changes: Any, message: str):
    with pytest.raises(UserError, match=message):
        compared(recipe, **changes)
    assert not Path(recipe.storage).exists()


def test_recipes_must_have_names_of_their_own_one_storage_and_text_to_divide(tmp_path: Path, recipe: Recipe):
    with pytest.raises(UserError, match="two recipes are called 'small'"):
        begin([recipe, recipe], trials=1)
    other = recipe.model_copy(update={"name": "other", "storage": "elsewhere"})
    with pytest.raises(UserError, match="storage: must be the same in all recipes"):
        begin([recipe, other], trials=1)
    with pytest.raises(UserError, match="--optimizers is for one recipe"):
        begin([recipe, other], optimizers=ARMS, trials=1)
    one = load_recipe(tmp_path / "recipe.yaml", ["evaluation={max_sequences: 1}"])
    with pytest.raises(UserError, match="evaluates on 1 held-out sequence"):
        compared(one)


def test_a_comparison_goes_on_only_as_it_was_begun(recipe: Recipe):
    begun = compared(recipe)
    begun.write()
    with pytest.raises(UserError, match=r"exists \(running\); go on with it by --resume"):
        compared(recipe)
    assert compared(recipe, resume=True, parallel="2") == begun.with_(parallel=2)
    with pytest.raises(UserError, match="trials: 3 there, 4 here"):
        compared(recipe, resume=True, trials=4, name="adamw-vs-lion")
    assert read_comparison(recipe.storage, "adamw-vs-lion") == begun


IMAGES = """\
task: image-classification
name: birds
length: 3 epochs
model: {architecture: wide-resnet-10-1}
data: {path: owner/birds}
optimizer: {name: sgd, lr: 0.1}
batch: {micro_batch: 8}
"""


def test_images_of_the_hub_are_those_of_the_beginning_and_all_that_tells_them_apart_is_remarked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commits = ["a" * 40]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "lowland.trainers.data.images.hub.find_images",
        lambda name, hub: types.SimpleNamespace(
            commit=hub.revision if hub.revision not in (None, "main") else commits[-1]
        ),
    )
    path = tmp_path / "images.yaml"
    path.write_text(IMAGES, encoding="utf-8")
    places = [
        ["name=one", "data.hub.revision=main"],
        ["name=two"],
        ["name=three", "data.hub.config=fine"],
        ["name=four", "data.held_out_path=."],
    ]
    recipes = [load_recipe(path, [f"storage={tmp_path}", *changes]) for changes in places]
    begun = begin(recipes, trials=2, seeds=2, name="c")
    assert begun.plan.cautions[-1].startswith("note: three, four: other data than one's")
    begun.write()
    commits.append("b" * 40)
    assert begin(recipes, trials=2, seeds=2, name="c", resume=True) == begun


def test_every_arm_is_tuned_alike_and_each_winner_is_trained_whole_with_every_seed(recipe: Recipe):
    played = Played(steady)
    result = lead(compared(recipe), played)
    for arm in result.arms:
        assert arm.tuning is not None
        assert len(arm.tuning.trials) == 3
        rates = {t.parameters["optimizer.lr"] for t in arm.tuning.trials}
        best = min(rates, key=lambda lr: abs(math.log10(lr) + 3))
        assert arm.winner is not None
        assert arm.winner.parameters["optimizer.lr"] == best
        assert arm.trained is not None
        assert arm.trained.setting is not None
        assert arm.trained.setting.recipe.optimizer.lr == pytest.approx(best)
        assert [(t.parameters["seed"], set(t.curve)) for t in arm.trained.trials] == [(s, {TICKS}) for s in (1, 3, 4)]
        assert (arm.seconds, arm.memory) == (2.0 * TICKS, 1.5)


def test_what_the_seeds_say_is_told_seed_by_seed(recipe: Recipe):
    base, lion = lead(compared(recipe), Played(steady)).arms
    assert base.against is None
    assert base.values == pytest.approx({1: 1.1, 3: 1.3, 4: 1.4})
    found = lion.against
    assert found is not None
    # Differences -0.2, -0.4, -0.5: t = -0.3667 / (0.152753 / sqrt(3)) = -4.1576, p = 1 - t / sqrt(t^2 + 2)
    assert found.difference.mean == pytest.approx(-11 / 30)
    assert found.t == pytest.approx(1 - 4.157609 / math.sqrt(4.157609**2 + 2), abs=1e-6)
    assert (found.better, found.pairs, found.flips) == (3, 3, 0.25)


@pytest.mark.parametrize(
    ("shift", "direction", "verdict"),
    [
        (-1.0, "minimize", "better"),
        (-1.0, "maximize", "worse"),
        (1.0, "minimize", "worse"),
        (0.0, "minimize", "not told"),
    ],
)
def test_verdicts(recipe: Recipe, shift: float, direction: str, verdict: str):
    def losses(study: str, parameters: Mapping[str, Any]) -> float:
        seed = parameters.get("seed", 0)
        return seed + (shift + 0.01 * (seed - 3) ** 2 * (-1) ** seed) * study.startswith("lion")

    result = lead(compared(recipe, direction=direction), Played(losses))
    assert result.verdict(result.arms[1]).startswith(verdict)
    assert result.verdict(result.base) == "base"


def test_p_values_of_several_arms_are_adjusted(recipe: Recipe):
    result = lead(compared(recipe, optimizers=["adamw", "lion", "soap"]), Played(steady))
    alone, same = (arm.against for arm in result.arms[1:])
    assert alone is not None
    assert same is not None
    assert alone.t == pytest.approx(2 * (1 - 4.157609 / math.sqrt(4.157609**2 + 2)), abs=1e-6)
    assert same.t == 1.0
    assert (alone.flips, same.flips) == (0.5, 1.0)


def test_a_driver_that_dies_at_any_moment_trains_nothing_twice(recipe: Recipe):
    comparison = compared(recipe, trials=2)
    trained = list[tuple[str, int, int]]()
    for driver in range(1, 60):
        played = Played(steady, lives=driver % 3)
        try:
            result = lead(comparison, played)
        except Death:
            comparison = compared(recipe, trials=2, resume=True)
            continue
        finally:
            trained += played.trained
        break
    assert driver > 5
    assert len(trained) == len(set(trained))
    assert [len(arm.values) for arm in result.arms] == [3, 3]
    assert result.arms[0].values == pytest.approx({1: 1.1, 3: 1.3, 4: 1.4})
    after = Played(steady)
    assert lead(comparison, after) == result
    assert after.trained == []


def test_seeds_that_diverge_are_results_and_those_whose_workers_died_are_trained_again(recipe: Recipe):
    def losses(study: str, parameters: Mapping[str, Any]) -> float:
        return {("lion-seeds", 3): math.nan, ("adamw-seeds", 1): math.inf}.get(
            (study, parameters.get("seed", 0)), steady(study, parameters)
        )

    comparison = compared(recipe)
    result = lead(comparison, Played(losses))
    base, lion = result.arms
    assert (list(base.values), base.missing, list(lion.values), lion.without) == ([3, 4], [1], [1, 4], 1)
    assert [result.verdict(arm) for arm in result.arms] == ["not finished", "1 of 3 gave no number (diverged)"]
    assert lion.against is not None
    assert lion.against.pairs == 1
    assert lion.against.t is None
    result = lead(comparison, again := Played(steady))
    assert [(study, end) for study, _, end in again.trained] == [("adamw-seeds", TICKS)]
    assert result.arms[0].values == pytest.approx({1: 1.1, 3: 1.3, 4: 1.4})


def test_an_arm_that_never_gives_a_number_has_no_winner(recipe: Recipe):
    comparison = compared(recipe)
    result = lead(comparison, Played(lambda study, p: math.nan if study == "lion-tuning" else steady(study, p)))
    assert result.verdict(result.arms[1]) == "no trial gave a value"
    assert read_stage(comparison.plan, "lion", "seeds") is None
    assert not result.arms[1].lost
    assert unfinished(comparison.plan, "lion", "tuning") is None
    assert "no trial gave a value" in printed(result)


def test_an_arm_whose_trials_were_lost_is_tuned_again(recipe: Recipe):
    comparison = compared(recipe, trials=2)
    result = lead(comparison, Played(lambda study, p: math.inf if study == "lion-tuning" else steady(study, p)))
    assert result.arms[1].lost
    assert result.verdict(result.arms[1]) == "tuning failed"
    result = lead(comparison, again := Played(steady))
    assert {study for study, _, _ in again.trained} == {"lion-tuning", "lion-seeds"}
    assert len(result.arms[1].values) == 3


def test_a_search_that_goes_on_makes_up_for_each_lost_trial_once(recipe: Recipe):
    comparison = compared(recipe, trials=2)
    lost = Played(lambda study, p: math.inf if study == "lion-tuning" else steady(study, p))
    for done in (2, 4, 6):
        lead(comparison, lost)
        setting, tuned = unfinished(comparison.plan, "lion", "tuning"), read_stage(comparison.plan, "lion", "tuning")
        assert setting is not None
        assert tuned is not None
        assert (len(tuned.trials), setting.trials) == (done, done + 2)


@pytest.mark.parametrize(
    ("loss", "verdict"), [(math.nan, "adamw: 1 of 3 gave no number (diverged)"), (math.inf, "not finished")]
)
def test_an_arm_is_not_judged_by_an_incomplete_base(recipe: Recipe, loss: float, verdict: str):
    def losses(study: str, parameters: Mapping[str, Any]) -> float:
        if study == "adamw-seeds" and parameters["seed"] == 3:
            return loss
        return steady(study, parameters)

    result = lead(compared(recipe), Played(losses))
    assert result.arms[1].values == pytest.approx({1: 0.9, 3: 0.9, 4: 0.9})
    assert result.verdict(result.arms[1]) == verdict


def test_without_a_base_there_is_nothing_to_compare_with(recipe: Recipe):
    result = lead(compared(recipe), Played(lambda s, p: math.nan if s == "adamw-tuning" else steady(s, p)))
    assert result.verdict(result.arms[1]) == "nothing to compare with"


def test_why_seeds_gave_no_number_is_said(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    played = Played(steady)

    def outcome(study: str, job: Job) -> Outcome:
        seed = job.task["parameters"].get("seed") if study == "lion-seeds" else None
        ends: dict[Any, Any] = {1: "out of memory", 3: "diverged"}
        return Outcome(ends[seed], "why") if seed in ends else Played.outcome(played, study, job)

    monkeypatch.setattr(played, "outcome", outcome)
    result = lead(compared(recipe), played)
    assert result.verdict(result.arms[1]) == "2 of 3 gave no number (diverged, out of memory)"


def test_the_reason_that_is_shown_is_of_a_training_that_was_lost(recipe: Recipe):
    def losses(study: str, parameters: Mapping[str, Any]) -> float:
        return {("lion-seeds", 3): math.nan, ("adamw-seeds", 1): math.inf}.get(
            (study, parameters.get("seed", 0)), steady(study, parameters)
        )

    result = lead(compared(recipe), Played(losses))
    with pytest.raises(RunError, match="seed 1 of adamw; a worker died; --resume"):
        _refuse_missing(result)


def test_a_damaged_comparison_is_told(recipe: Recipe):
    begun = compared(recipe)
    begun.write()
    (begun.plan.folder / "compare.json").write_text('{"plan": 3')
    with pytest.raises(UserError, match=r"adamw-vs-lion/compare.json cannot be read .*restore it or move the folder"):
        read_comparison(recipe.storage, "adamw-vs-lion")


def test_seeds_of_a_winner_that_is_none_any_more_are_refused(recipe: Recipe):
    comparison = compared(recipe, policy="none")
    lead(comparison, Played(steady))
    setting = read_setting(storage_of(comparison.plan), "lion-tuning")
    assert setting is not None
    search(setting.with_(trials=4), Played(lambda study, parameters: -1.0))
    with pytest.raises(UserError, match="lion-tuning went on after lion-seeds had been begun"):
        unfinished(comparison.plan, "lion", "seeds")


def printed(result: ComparisonResult, width: int = 80) -> str:
    text = io.StringIO()
    print_result(result, Console(file=text, width=width))
    return text.getvalue()


def test_the_report_is_whole_on_a_narrow_screen(recipe: Recipe):
    result = lead(compared(recipe), Played(steady))
    text = printed(result, width=40)
    assert text == printed(result, width=200)
    assert "-0.3667 ± 0.38" in text
    assert "…" not in text
    assert "at least 0.25 with so many seeds" in text


def test_the_files_of_a_report(recipe: Recipe, tmp_path: Path):
    result = lead(compared(recipe), Played(steady))
    files = {file.name: file.read_text() for file in write_report(result, tmp_path / "report")}
    assert set(files) == {"comparison.txt", "comparison.html", "adamw.yaml", "lion.yaml"}
    assert all(f"<h2>{name}</h2>" in files["comparison.html"] for name in ("Seeds", "Differences", "Tuning curves"))
    tuned = load_recipe(tmp_path / "report" / "lion.yaml")
    winner = result.arms[1].winner
    assert winner is not None
    assert (tuned.name, tuned.optimizer.name, tuned.evaluation) == ("lion-tuned", "lion", recipe.evaluation)
    assert tuned.optimizer.lr == winner.parameters["optimizer.lr"]
    assert tuned.tracking == recipe.tracking
    with pytest.raises(UserError, match="cannot be written"):
        write_report(result, tmp_path / "report" / "lion.yaml")
    values = metrics_of(result)
    assert values["compare/lion/difference"] == pytest.approx(-11 / 30)
    assert all(math.isfinite(value) for value in values.values())


def test_a_comparison_that_has_hardly_begun_can_be_read(recipe: Recipe):
    comparison = compared(recipe)
    with pytest.raises(Death):
        lead(comparison, Played(steady, lives=1))
    result = read_result(comparison.plan)
    assert {result.verdict(arm) for arm in result.arms} == {"not finished"}
    assert "adamw-vs-lion" in printed(result)


def test_a_winner_at_the_end_of_a_range_is_remarked_on(recipe: Recipe, tmp_path: Path):
    space = tmp_path / "space.yaml"
    ends = "optimizer.lr: {type: float, low: 1.0e-5, high: 3.0e-5, step: 1.0e-5}"
    space.write_text(f"description: Too low\nparameters:\n  {ends}\n")
    other = recipe.model_copy(update={"name": "other"})
    comparison = begin([recipe, other], [str(space)], trials=3, seeds=2, sampler="grid")
    assert "at the end of the range" in printed(lead(comparison, Played(steady)))


def test_a_grid_proposes_each_combination_once_and_a_failed_one_again():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {
        "a": CategoricalDistribution(["x", "y"]),
        "b": IntDistribution(1, 3),
        "c": FloatDistribution(0, 1, step=0.5),
    }
    study = optuna.create_study(sampler=make_sampler("grid", space, TICKS))
    every = [tuple(study.ask(space).params.values()) for _ in range(18)]
    assert len(set(every)) == 18
    study.tell(4, state=optuna.trial.TrialState.FAIL)
    assert tuple(study.ask(space).params.values()) == every[4]
    assert tuple(study.ask(space).params.values()) == every[0]
    with pytest.raises(UserError, match="grid: lr has no finite number of values"):
        make_sampler("grid", {"lr": FloatDistribution(0.1, 1.0)}, TICKS)


def asked(space: Mapping[str, Any], times: int, **given: Any) -> list[tuple[Any, ...]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=make_sampler("grid", space, TICKS, **given))
    return [tuple(study.ask(space).params.values()) for _ in range(times)]


def test_a_grid_tries_what_does_not_count_only_once():
    space = {"br": CategoricalDistribution(["a", "b"]), "a/x": IntDistribution(1, 3)}
    wanted = [("a", 1), ("a", 2), ("a", 3), ("b", 1)]
    assert asked(space, 5, conditions={"a/x": (("br", "a"),)}) == [*wanted, wanted[0]]


def test_a_grid_stays_within_the_range():
    space = {"x": FloatDistribution(0.0, 0.3, step=0.1)}
    values = [value for (value,) in asked(space, 4)]
    assert values == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert all(map(space["x"]._contains, values))


def test_a_grid_has_only_what_is_allowed():
    space = {"x": IntDistribution(1, 100)}
    assert asked(space, 3, allowed=lambda p: p["x"] > 97) == [(98,), (99,), (100,)]
    with pytest.raises(UserError, match="grid: none of 100 combinations keeps the constraints"):
        asked(space, 1, allowed=lambda p: False)


def test_the_command_passes_on_what_it_is_given(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = list[tuple[Comparison, str | None]]()

    def compare(comparison: Comparison, *, address: str | None, console: Console) -> types.SimpleNamespace:
        calls.append((comparison, address))
        return types.SimpleNamespace(exit_code=130)

    monkeypatch.setitem(
        sys.modules,
        "lowland.platform.comparison.compare",
        types.SimpleNamespace(compare=compare),  # type: ignore[arg-type]
    )
    given = ["--optimizers", "adamw, lion", "--space", "lion=batch", "--trials", "4", "--budget", "9 trainings"]
    given += [
        "--seeds",
        "2",
        "--metric",
        "eval/perplexity",
        "--direction",
        "maximize",
        "--sampler",
        "tpe",
        "--seed",
        "5",
    ]
    given += ["--policy", "none", "--name", "mine", "--parallel", "3", "--address", "head:6379"]
    file = [str(tmp_path / "recipe.yaml"), "--set", f"storage={recipe.storage}"]
    result = CliRunner().invoke(app, ["compare", *file, *given], catch_exceptions=False)
    assert result.exit_code == 130
    ((comparison, address),) = calls
    wanted = begin(
        [recipe],
        ["lion=batch"],
        optimizers=ARMS,
        name="mine",
        seeds=2,
        metric="eval/perplexity",
        direction="maximize",
        trials=4,
        budget="9 trainings",
        parallel="3",
        sampler="tpe",
        policy="none",
        seed=5,
    )
    assert (comparison.plan, comparison.parallel, address) == (wanted.plan, 3, "head:6379")


def test_the_commands_help_has_an_example_and_wrong_use_ends_with_2(tmp_path: Path):
    help_text = CliRunner().invoke(app, ["compare", "--help"]).output
    assert "lowland compare adamw.yaml tam.yaml --trials 20" in " ".join(help_text.split())
    assert CliRunner().invoke(app, ["compare"]).exit_code == 2
    assert CliRunner().invoke(app, ["compare", "a.yaml", "--seeds", "1"]).exit_code == 2
