"""Numbers without ends: read, held against recipes, followed along the front of quality and cost, and shown."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import IntDistribution
from optuna.storages import InMemoryStorage
from recipe_files import write_recipe
from rich.console import Console

from lowland.platform.recipe import load_recipe
from lowland.platform.recipe.document import parse
from lowland.platform.recipe.dump import dump
from lowland.platform.search.choices import SAMPLERS
from lowland.platform.search.earlier import with_known_rate, with_priors
from lowland.platform.search.export import as_table
from lowland.platform.search.importance import importances, tried_ranges
from lowland.platform.search.leaderboard import print_study
from lowland.platform.search.plots import page
from lowland.platform.search.points import located
from lowland.platform.search.policies import Promotion
from lowland.platform.search.results import StudyResult, trials_in
from lowland.platform.search.same import refuse_another
from lowland.platform.search.samplers import MultiFidelitySampler
from lowland.platform.search.samplers.encoding import Encoding
from lowland.platform.search.samplers.pareto import drawn
from lowland.platform.search.scaling import growths
from lowland.platform.search.setting import TICKS, Setting
from lowland.platform.search.simulate import simulate
from lowland.platform.search.space import distribution_of, open_space
from lowland.platform.search.start import begin, policy_of, sampler_of
from lowland.platform.search.study import Study
from lowland.search_spaces import Prior, Space, Unbounded
from lowland.trainers.errors import RecipeError, UserError

WIDTH, LR = "model.config.intermediate_size", "optimizer.lr"
SPACE = f"""\
description: How wide, at which rate
parameters:
  {WIDTH}: {{type: unbounded, centre: 64, factor: 2, multiple: 8}}
  {LR}: {{type: unbounded, centre: 1e-3, high: 1}}
"""


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def space(text: str = SPACE) -> Space:
    return Space.model_validate(parse(text, "space").data)


def one(**fields: Any) -> Unbounded:
    return Unbounded.model_validate({"type": "unbounded", **fields})


@st.composite
def numbers(draw: st.DrawFn) -> Unbounded:
    """Any number without ends."""
    centre = draw(st.floats(1e-6, 1e6))
    fields: dict[str, Any] = {"centre": centre, "factor": draw(st.floats(1.1, 100))}
    if centre >= 1 and draw(st.booleans()):
        fields["multiple"] = draw(st.integers(1, max(1, int(centre // 4))))
    ends = {"low": centre / draw(st.floats(4, 1e3)), "high": centre * draw(st.floats(4, 1e3))}
    end = draw(st.sampled_from(["none", *ends]))
    return one(**fields, **({end: ends[end]} if end in ends else {}))


@settings(max_examples=60, deadline=None)
@given(numbers(), st.lists(st.floats(-40, 40), min_size=3, max_size=3))
def test_any_is_written_out_and_read_back_and_any_point_is_a_value_within_its_ends(number: Unbounded, places: Any):
    made = Space(description="", parameters={"a.b": number})
    assert Space.model_validate(parse(dump(made), "space").data) == made
    encoding = Encoding({"a.b": distribution_of(made.entries()[0])}, unbounded={"a.b": number})
    for point in encoding.snap(np.array(places)[:, None]):
        value = encoding.decode(point)["a.b"]
        assert encoding.space["a.b"]._contains(value)
        assert number.nearest(value) == pytest.approx(value)
        assert encoding.encode([{"a.b": value}])[0] == pytest.approx(point, abs=1e-6)
    centre = encoding.encode([{"a.b": number.centre}])[0, 0]
    start = encoding.encode([{"a.b": number.centre * number.factor}])[0, 0]
    assert centre == pytest.approx(0.5, abs=1e-6)
    assert start == pytest.approx(min(1.0, encoding.most[0]), abs=1e-6)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("recipe")
    return load_recipe(write_recipe(folder / "given"), [f"storage={folder}"])


WRONG = [
    ("optimizer.lr: {type: unbounded}", "parameters.optimizer.lr.centre: missing: give a number greater than 0"),
    ("optimizer.lr: {type: unbounded, centre: -1}",
     "parameters.optimizer.lr.centre = -1: must be a number greater than 0"),
    ("optimizer.lr: {type: unbounded, centre: 1, factor: 1}",
     "parameters.optimizer.lr.factor = 1: must be a number greater than 1"),
    ("optimizer.lr: {type: unbounded, centre: 1e-3, low: 1e-5, high: 1}",
     "parameters.optimizer.lr: low: 1e-05 and high: 1 are both ends: write type: float or integer with log: true"),
    ("optimizer.lr: {type: unbounded, centre: 1e-3, low: 1e-2}",
     "parameters.optimizer.lr: the centre must lie between 0.01 and 1e+06, got 0.001"),
    ("batch.micro_batch: {type: unbounded, centre: 3, multiple: 4}",
     "parameters.batch.micro_batch: the centre must lie between 4 and 3e+09, got 3"),
    ("batch.micro_batch: {type: unbounded, centre: 4, multiple: 4, high: 6}",
     "parameters.batch.micro_batch: 4 is the only value that is left: change the end or the multiple"),
    ("log2 batch.micro_batch: {type: unbounded, centre: 4}",
     "log2 batch.micro_batch: of what is unbounded ratios count already: remove log2"),
    ("optimizer.lrr: {type: unbounded, centre: 1}", "optimizer.lrr: unknown field of optimizer adamw; nearest: lr"),
    ("schedule.warmup: {type: unbounded, centre: 5}",
     "schedule.warmup: must be a number and a unit (%, steps, tokens): give the parameter `unit`"),
    ("batch.micro_batch: {type: unbounded, centre: 4}",
     "batch.micro_batch = 2.5198420997897464: must be a whole number at least 1"),
    ("1 - optimizer.betas.0: {type: unbounded, centre: 0.5}",
     "1 - optimizer.betas.0 = 2.0: optimizer.betas.0 would be -1: must be a number at least 0 and less than 1; "
     "the first trials lie as far from the centre as factor says"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, recipe: Any, line: str, message: str):
    (tmp_path / "space.yaml").write_text(f"description: wrong\nparameters:\n  {line}\n")
    with pytest.raises(RecipeError) as caught:
        open_space([str(tmp_path / "space.yaml")], recipe)
    told = str(caught.value).replace(f"{tmp_path}/", "")
    number = 1 if message.startswith("log2") else 3
    assert told == f"space.yaml:{number}: {message}"


def asked(tmp_path: Path, recipe: Any, text: str = SPACE, **changes: Any) -> Setting:
    """A search of a space with this text."""
    file = tmp_path / "space.yaml"
    file.write_text(text)
    here = recipe.model_copy(update={"storage": str(tmp_path / "runs")})
    return begin(here, [str(file)], **{"trials": 30, "sampler": "pareto", **changes})


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "pareto"])
def test_samplers_that_need_ends_are_refused(tmp_path: Path, recipe: Any, sampler: str):
    with pytest.raises(UserError) as caught:
        asked(tmp_path, recipe, sampler=sampler)
    assert str(caught.value).startswith(
        f"--sampler {sampler} needs the ends of every range; without any: {WIDTH}, {LR} ("
    )
    assert "take --sampler pareto, " in str(caught.value)


def test_what_would_need_a_range_is_refused(tmp_path: Path, recipe: Any):
    with pytest.raises(UserError, match=r"--known-lr 1e-3@width=64: optimizer.lr is unbounded .* as its centre"):
        with_known_rate(space(), "1e-3@width=64")
    with pytest.raises(UserError, match=f"--perturb {LR}: it has no range that a copy's value could be drawn from"):
        asked(tmp_path, recipe, policy="pbt", perturb=[LR])


def test_a_recipe_with_another_factor_is_another_search(tmp_path: Path, recipe: Any):
    setting = asked(tmp_path, recipe)
    setting.write()
    assert Setting.model_validate_json(setting.model_dump_json(exclude_unset=True)) == setting
    other = tmp_path / "other.yaml"
    other.write_text(SPACE.replace("factor: 2", "factor: 3"))
    refuse_another(setting, setting.recipe, spaces=[str(tmp_path / "space.yaml")])
    with pytest.raises(UserError, match=r"factor=2.* -> .*factor=3"):
        refuse_another(setting, setting.recipe, spaces=[str(other)])


def test_earlier_trainings_are_found_in_it_and_related_ones_move_the_centre():
    fields = {WIDTH: "8000", LR: "0.25"}
    assert located(space(), fields) == [{WIDTH: 8000, LR: 0.25}]
    moved = with_priors(space(), {WIDTH: Prior(centre=800), LR: Prior(centre=0.1)}).parameters
    assert (moved[WIDTH].centre, moved[LR].centre, moved[WIDTH].factor) == (800, 0.1, 2)  # type: ignore[union-attr]


class Growing:
    """Wider is better up to a hundred times the centre, and dearer; the best rate falls with the root of the width."""

    def values(self, parameters: dict[str, float], start: int, end: int) -> list[float]:
        width, rate = parameters[WIDTH], parameters[LR]
        off = math.log(rate / 1e-3) + 0.5 * math.log(width / 64)
        floor = abs(math.log(6400 / width)) + 0.5 * off**2
        return [floor + 1 / r for r in range(start + 1, end + 1)]

    def seconds(self, parameters: dict[str, float], start: int, end: int) -> float:
        return (end - start) * parameters[WIDTH] / 64


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, recipe: Any) -> StudyResult:
    """A search of twelve whole trainings' length."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    setting, storage = asked(tmp_path_factory.mktemp("search"), recipe), InMemoryStorage()
    study = Study(storage, "growing", setting.bound().distributions(), "minimize", sampler_of(setting))
    simulate(study, policy_of(setting), Growing(), workers=1, budget=TICKS * 12)
    return StudyResult("growing", "eval/loss", "minimize", TICKS, trials_in(storage, "growing"), setting)


def test_a_search_follows_the_front_far_beyond_where_it_set_out(found: StudyResult):
    widths = [trial.parameters[WIDTH] for trial in found.trials]
    assert widths[0] == 64
    assert all(32 <= width <= 128 for width in widths[:4]), "the beginning"
    assert all(width % 8 == 0 for width in widths)
    assert found.best is not None
    assert 3200 <= found.best.parameters[WIDTH] <= 12800
    assert found.best.parameters[LR] < 5e-4
    grown = {growth.parameter: growth.slope for growth in growths(found)[0]}
    assert grown == {WIDTH: pytest.approx(1, abs=0.05), LR: pytest.approx(-0.5, abs=0.3)}, "the width is the cost"


def test_what_was_found_is_shown(found: StudyResult):
    told, text = importances(found), io.StringIO()
    print_study(found, told, Console(file=text, width=120))
    assert f"{WIDTH} grows as cost^" in text.getvalue()
    assert "Slice" in page(found, told)
    assert as_table(found).column(f"parameter.{WIDTH}").to_pylist()[0] == 64


def test_importances_are_of_the_range_that_was_tried(tmp_path: Path, recipe: Any):
    setting, storage = asked(tmp_path, recipe), InMemoryStorage()
    held = setting.bound().distributions()
    study = optuna.create_study(storage=storage, study_name="a")
    for width, rate in zip(
        range(64, 104), np.random.default_rng(0).permutation(np.geomspace(8e-4, 1.3e-3, 40)), strict=True
    ):
        trial = optuna.trial.create_trial(
            params={WIDTH: width, LR: float(rate)},
            distributions=held,
            value=1 / width,
            intermediate_values={51: 1 / width},
        )
        study.add_trial(trial)
    result = StudyResult("a", "eval/loss", "minimize", TICKS, trials_in(storage, "a"), setting)
    first, other = importances(result)
    assert (first.parameter, tried_ranges(result)[WIDTH]) == (WIDTH, IntDistribution(64, 103, log=True))
    assert first.mean > 2 * other.mean, "within eighteen decades all trials are alike"


def test_nothing_is_proposed_that_the_rest_of_the_budget_does_not_pay_for():
    made = space()
    entries = {entry.name: entry for entry in made.entries()}
    held = {name: distribution_of(entry) for name, entry in entries.items()}
    numbers = {name: entry.parameter for name, entry in entries.items()}

    def widest(budget: float | None) -> float:
        sampler = MultiFidelitySampler(held, 27, seed=0, aim="pareto", unbounded=numbers, budget=budget)  # type: ignore[arg-type]
        study = Study(InMemoryStorage(), "a", held, "minimize", sampler)
        most = budget or math.inf
        simulate(study, Promotion(27, first=3), Growing(), workers=1, budget=27 * 8, until_cost=most)
        return max(trial.parameters[WIDTH] for trial in study.trials())

    assert widest(None) > 1000
    assert widest(27 * 8.0) <= 64 * 8, "of which one whole training costs as much as the budget"


def test_where_ends_are_given_the_sampler_does_as_it_did():
    """Beside a number without ends, those with ends keep their range; without any, no draw is made that was not."""
    encoding = Encoding({LR: distribution_of(space().entries()[1])})
    one_generator, other = np.random.default_rng(0), np.random.default_rng(0)
    assert np.array_equal(encoding.random(9, one_generator, np.ones((3, 1))), other.random((9, 1)))
    assert one_generator.random() == other.random()


def test_trials_are_drawn_from_all_along_the_front():
    costs, values = np.array([0.0, 1.0, 1.0, 2.0, 9.0]), np.array([5.0, 4.0, 6.0, 3.0, 1.0])
    generator = np.random.default_rng(0)
    chosen = [drawn(costs, values, generator) for _ in range(400)]
    assert set(chosen) == {0, 1, 3, 4}, "what others beat is not on it"
    assert chosen.count(4) / 400 == pytest.approx(3.5 / 9, abs=0.08), "by the place between costs"
