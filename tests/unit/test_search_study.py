"""The state of a search: whole in storage, the same under virtual time, refused where it would mix."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from lowland.platform.search.objectives import Direction
from lowland.platform.search.policies import Fixed, Policy, Promotion, Stopping
from lowland.platform.search.simulate import simulate
from lowland.platform.search.study import Study
from lowland.trainers.errors import UserError

SPACE = {"x": FloatDistribution(-1.0, 1.0), "y": FloatDistribution(1e-4, 1.0, log=True)}


class Bowl:
    """Curves that fall towards x^2 + (log10 y + 2)^2 / 4."""

    def values(self, parameters: Any, start: int, end: int) -> list[float]:
        floor = parameters["x"] ** 2 + (math.log10(parameters["y"]) + 2) ** 2 / 4
        return [floor + 1.0 / r for r in range(start + 1, end + 1)]

    def seconds(self, parameters: Any, start: int, end: int) -> float:
        return float(end - start)


def study(storage: BaseStorage, direction: Direction = "minimize", seed: int = 0) -> Study:
    return Study(storage, "a", SPACE, direction, RandomSampler(seed=seed))


def journal(path: Path) -> BaseStorage:
    return JournalStorage(JournalFileBackend(str(path)))


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_a_driver_that_died_finds_everything_in_storage(tmp_path: Path):
    policy, curves = Promotion(27, first=3), Bowl()
    before = study(journal(tmp_path / "journal"))
    simulate(before, policy, curves, workers=1, budget=60)
    lost = before.next(policy)
    after = study(journal(tmp_path / "journal"), seed=9)
    assert after.trials() == before.trials()
    running = [t for t in after.trials() if t.status == "running"]
    assert [(t.number, t.target) for t in running] == [(lost.trial, lost.end)]
    for resource, value in enumerate(curves.values(running[0].parameters, lost.start, lost.end), lost.start + 1):
        after.report(lost.trial, resource, value)
        after.report(lost.trial, resource, value + 1)
    assert after.trial(lost.trial).curve == dict(enumerate(curves.values(running[0].parameters, 0, lost.end), 1)), (
        "what is reported twice counts once"
    )


def test_what_optuna_is_told(tmp_path: Path):
    storage, policy = InMemoryStorage(), Stopping(27, first=3)
    searched = study(storage)
    simulate(searched, policy, Bowl(), workers=2, budget=200)
    for trial in optuna.load_study(study_name="a", storage=storage).trials:
        reached = max(trial.intermediate_values)
        assert trial.state == (TrialState.COMPLETE if reached == 27 else TrialState.PRUNED)
        assert trial.value == trial.intermediate_values[reached]


def test_a_value_that_is_not_finite_is_the_worst_and_ends_the_trial():
    searched, policy = study(InMemoryStorage(), "maximize"), Promotion(27, first=3)
    segment = searched.next(policy)
    searched.report(segment.trial, 3, math.nan)
    assert searched.ended(segment.trial, policy) is None
    trial = searched.trial(segment.trial)
    assert trial.status == "stopped"
    assert trial.curve == {3: math.inf}
    assert searched.next(policy).trial != segment.trial


def test_a_failure_is_no_value():
    searched, policy = study(InMemoryStorage()), Promotion(27, first=3)
    segment = searched.next(policy)
    searched.fail(segment.trial, "a node was lost")
    assert searched.trial(segment.trial).status == "failed"
    assert searched.trial(segment.trial).best == math.inf


def test_another_direction_or_space_is_refused_with_both_shown():
    storage = InMemoryStorage()
    study(storage)
    with pytest.raises(UserError, match=r"to minimize, this search to\s+maximize"):
        study(storage, "maximize")
    with pytest.raises(UserError, match=r"y: FloatDistribution.* there, absent here"):
        Study(storage, "a", {"x": SPACE["x"]}, "minimize", RandomSampler())


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("policy", [Fixed(27, 27), Fixed(27, 3), Promotion(27, first=3)], ids=str)
def test_virtual_time(policy: Policy, workers: int):
    searched = study(InMemoryStorage())
    points = simulate(searched, policy, Bowl(), workers=workers, budget=270, start_seconds=0.5)
    assert 270 <= points[-1].resource < 270 + 27 * workers
    assert [p.seconds for p in points] == sorted(p.seconds for p in points)
    assert points[-1].resource == sum(t.reached for t in searched.trials())
    assert points[-1].best == min(t.best for t in searched.trials())
    busy = points[-1].resource + 0.5 * len(points)
    assert busy / workers <= points[-1].seconds <= busy / workers + 27.5 * workers


def test_a_simulated_search_ends_when_its_seconds_are_spent():
    points = simulate(study(InMemoryStorage()), Promotion(27, first=3), Bowl(), workers=1, budget=270, until_cost=100)
    assert points[-2].cost < 100 <= points[-1].cost
    assert points[-1].resource < 270
