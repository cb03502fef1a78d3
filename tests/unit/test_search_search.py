"""What a search does next, with trainings that are played: results, failures, budgets, and a driver that dies."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from lowland.platform.search.jobs import Job, Outcome, Resources
from lowland.platform.search.ledger import Budget
from lowland.platform.search.policies import Promotion
from lowland.platform.search.search import FAILURES, Search
from lowland.platform.search.study import Study
from lowland.platform.search.trials import Segment
from lowland.trainers.errors import RunError, UserError

SPACE = {"x": FloatDistribution(0.0, 1.0)}
HOLDS = Resources(2, 1.0, 1, None, "PACK")
POLICY = Promotion(27, first=3)


class Played:
    """Runs that only note what they are told."""

    def __init__(self) -> None:
        self.fates: list[tuple[int, str]] = []
        self.begun: list[Segment] = []
        self.settled: list[tuple[int, str, str]] = []

    def begin(self, segment: Segment, parameters: Mapping[str, Any], origin: Any = None) -> Job:
        self.begun.append(segment)
        return Job(HOLDS, {"x": parameters["x"], "end": segment.end})

    def ended(self, number: int, outcome: Outcome, fate: str) -> None:
        self.fates.append((number, fate))

    def rests(self, number: int) -> None:
        self.fates.append((number, "rests"))

    def settle(self, number: int, outcome: Outcome, fate: str) -> None:
        self.settled.append((number, outcome.end, fate))


def search(
    storage: BaseStorage | None = None,
    *,
    most: int | None = 9,
    budget: str | None = None,
    metric: str = "eval/loss",
    why_not: Callable[[Mapping[str, Any]], list[str]] = lambda _: [],
) -> tuple[Search, Played]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = Study(storage or InMemoryStorage(), "a", SPACE, "minimize", RandomSampler(seed=1))
    runs = Played()
    spend = Budget.parse(budget) if budget is not None else None
    return Search(study, POLICY, runs, why_not, metric=metric, most=most, budget=spend), runs


def trained(job: Job) -> Outcome:
    """A loss that falls towards x, ten seconds a tick."""
    end = job.task["end"]
    metrics = {"eval/loss": job.task["x"] + 1 / end, "train/tokens": 100.0 * end, "train/epoch": end / 27}
    result = {"metrics": metrics, "step": end, "seconds": 8.0 * end, "startup": 1.0}
    return Outcome("reached", result=result, attempts=1, seconds=10.0 * end)


def play(held: Search, outcome: Callable[[Job], Outcome] = trained) -> int:
    """One segment after the other to the end; how many."""
    count = 0
    while not isinstance(answer := held.next(), str):
        segment, job = answer
        held.ended(segment.trial, outcome(job))
        count += 1
    assert answer == "over"
    return count


def test_the_best_trial_is_trained_whole_and_the_others_are_told_where_they_ended():
    held, runs = search()
    play(held)
    trials = held.study.trials()
    best = min(trials, key=lambda t: t.parameters["x"])
    assert [t.number for t in trials if t.status == "finished"] == [best.number]
    assert {t.status for t in trials} == {"finished", "paused"}
    assert list(best.curve) == [3, 9, 27]
    assert [fate for number, fate in runs.fates if number == best.number] == ["paused", "paused", "finished"]
    assert len(trials) == 9
    assert {number for number, fate in runs.fates if fate == "rests"} == {t.number for t in trials} - {best.number}


def test_few_trials_also_end_with_a_whole_one():
    held, _ = search(most=2)
    assert play(held) == 4
    assert sorted(len(t.curve) for t in held.study.trials()) == [1, 3]


def test_the_end_of_a_budget_is_left_for_the_best_trial_to_be_trained_whole():
    held, _ = search(most=None, budget="2 trainings")
    play(held)
    trials = held.study.trials()
    (whole,) = [t for t in trials if t.status == "finished"]
    assert whole.parameters["x"] == min(t.parameters["x"] for t in trials if 9 in t.curve)
    assert len(trials) > 6, "what is not needed for that goes into trials"
    assert 2 - 3 / 27 <= held.ledger().trainings <= 2 + 3 / 27


def test_a_worker_waits_while_those_that_train_may_decide_what_is_next():
    held, _ = search(most=1)
    answer = held.next()
    assert not isinstance(answer, str)
    assert held.next() == "wait"
    held.ended(0, trained(answer[1]))
    assert not isinstance(held.next(), str)


@pytest.mark.parametrize("end", ["diverged", "out of memory", "refused"])
def test_what_says_something_of_the_parameters_is_the_worst_result_and_ends_the_trial(end: Any):
    held, runs = search(most=4)
    play(held, lambda job: Outcome(end, "why") if job.task["x"] < 0.3 else trained(job))
    bad = [t for t in held.study.trials() if t.parameters["x"] < 0.3]
    assert bad
    assert all(t.curve == {3: math.inf} and t.status == "stopped" for t in bad)
    assert {held.study.notes(t.number)["end"] for t in bad} == {end}
    assert all((t.number, "failed") in runs.fates for t in bad)


def test_failures_have_no_value_and_several_in_a_row_end_the_search():
    held, _ = search(most=50)
    assert play(held, lambda _: Outcome("failed", "disk full")) == FAILURES
    assert isinstance(held.problem, RunError)
    assert "disk full" in str(held.problem)
    assert {t.status for t in held.study.trials()} == {"failed"}


def test_what_breaks_a_constraint_is_no_trial():
    held, runs = search(most=3, why_not=lambda p: ["x < 0.5 does not hold"] if p["x"] >= 0.5 else [])
    play(held)
    trials = held.study.trials()
    assert len({segment.trial for segment in runs.begun}) == 3
    assert len(trials) > 3
    assert all(trials[segment.trial].parameters["x"] < 0.5 for segment in runs.begun)
    held, _ = search(why_not=lambda _: ["never"])
    assert held.next() == "over"
    assert "break the constraints" in str(held.problem)


def test_a_metric_that_never_appears_ends_the_search_after_one_segment():
    held, _ = search(metric="eval/los")
    assert play(held) == 1
    assert isinstance(held.problem, UserError)
    assert "eval/loss" in str(held.problem)


@pytest.mark.parametrize(
    ("budget", "unit_of"), [("5 trainings", "trainings"), ("0.5gpu-hours", "gpu-hours"), ("2e3 tokens", "tokens")]
)
def test_nothing_begins_once_the_budget_is_spent(budget: str, unit_of: Any):
    held, _ = search(most=None, budget=budget)
    play(held)
    given = Budget.parse(budget)
    most = {"trainings": 1.0, "gpu-hours": 270 * 2 / 3600, "tokens": 2700.0}[unit_of]
    assert given.amount <= held.ledger().spent(given) < given.amount + most
    assert held.share() == 1.0
    assert not any(t.status == "running" for t in held.study.trials())


def test_the_ledger_counts_work_once_and_time_always():
    held, _ = search(most=1)
    play(held)
    ledger = held.ledger()
    assert (ledger.seconds, ledger.gpu_seconds, ledger.cpu_seconds) == (390.0, 780.0, 780.0)
    assert (ledger.steps, ledger.tokens, ledger.trainings) == (27, 2700.0, 1.0)
    assert ledger.goodput == pytest.approx(8 * 27 / 390)
    assert ledger.startup_share == pytest.approx(3 / 390)


def journal(path: Path) -> BaseStorage:
    return JournalStorage(JournalFileBackend(str(path / "journal")))


def test_a_stopped_search_goes_on_where_it_was(tmp_path: Path):
    held, runs = search(journal(tmp_path))
    play_some = [held.next() for _ in range(3)]
    assert all(not isinstance(answer, str) for answer in play_some)
    held.stop()
    assert held.next() == "wait"
    for number in range(3):
        held.ended(number, Outcome("interrupted"))
    assert held.next() == "over"
    assert {fate for _, fate in runs.fates} == {"interrupted"}
    again, runs = search(journal(tmp_path))
    play(again)
    assert runs.begun[:3] == [Segment(0, 0, 3), Segment(1, 0, 3), Segment(2, 0, 3)]
    assert len(again.study.trials()) == 9


def test_a_driver_that_dies_at_any_moment_loses_and_repeats_nothing(tmp_path: Path):
    """Each driver dies with a segment under way, or with its value written and nothing decided."""
    measured: dict[tuple[int, int], float] = {}
    for turn in range(60):
        held, _ = search(journal(tmp_path), most=6)
        answer = held.next()
        if isinstance(answer, str):
            break
        segment, job = answer
        value = trained(job).result["metrics"]["eval/loss"]
        match turn % 3:
            case 0:
                continue
            case 1:
                held.study.report(segment.trial, segment.end, value)
            case _:
                held.ended(segment.trial, trained(job))
        assert measured.setdefault((segment.trial, segment.end), value) == value
    else:
        raise AssertionError("the search does not end")
    trials = held.study.trials()
    assert {(t.number, r): v for t in trials for r, v in t.curve.items()} == measured
    assert len(trials) == 6
    assert sum(t.status == "finished" for t in trials) == 1


class Died(Exception):
    """The driver's process is gone."""


WRITES = ("create_new_trial", "set_trial_param", "set_trial_user_attr", "set_trial_intermediate_value")
WRITES_OF_STATE = (*WRITES, "set_trial_state_values")


class Mortal(InMemoryStorage):
    """A storage that takes so many writes before its writer dies; `left` None is without end."""

    left: int | None = None


def _mortal(name: str) -> Callable[..., Any]:
    def write(self: Mortal, *arguments: Any, **keywords: Any) -> Any:
        if self.left is not None:
            if self.left == 0:
                raise Died
            self.left -= 1
        return getattr(InMemoryStorage, name)(self, *arguments, **keywords)

    return write


for _write in WRITES_OF_STATE:
    setattr(Mortal, _write, _mortal(_write))


def test_a_driver_may_die_between_any_two_writes():
    deaths = 0
    for count in range(10_000):
        storage = Mortal()
        held, _ = search(storage, most=6)
        storage.left = count
        try:
            play(held)
        except Died:
            deaths += 1
        else:
            break
        storage.left = None
        again, runs = search(storage, most=6)
        play(again)
        trials = again.study.trials()
        begun = [t for t in trials if t.target]
        assert len(begun) == 6
        assert {t.status for t in begun} == {"finished", "paused"}
        assert sum(t.status == "finished" for t in begun) == 1
        assert all(t.curve[r] == t.parameters["x"] + 1 / r for t in begun for r in t.curve)
        repeated = [s for s in runs.begun if s.start == s.end]
        assert len(repeated) <= 1, "only a decision is made anew, no training"
    assert deaths > 50


def test_a_finished_search_goes_on_with_more_trials_and_its_paused_ones():
    storage = InMemoryStorage()
    held, _ = search(storage, most=5)
    play(held)
    before = held.study.trials()
    waiting = {t.number for t in before if t.status == "paused"}
    assert len(waiting) == 4
    again, runs = search(storage, most=30)
    play(again)
    assert waiting & {s.trial for s in runs.begun if s.start == 3}, "a paused trial was promoted"
    for old, new in zip(before, again.study.trials(), strict=False):
        assert old.curve.items() <= new.curve.items()


def test_runs_that_a_dead_driver_did_not_close_are_closed():
    storage = InMemoryStorage()
    held, _ = search(storage, most=2)
    play(held)
    lost = held.study.next(POLICY)
    again, runs = search(storage, most=2)
    fates = {t.number: t.status for t in held.study.trials()}
    assert sorted(runs.settled) == sorted((n, "reached", s) for n, s in fates.items() if s != "running")
    again.stop()
    assert again.next() == "over"
    assert runs.settled[-1] == (lost.trial, "interrupted", "interrupted")


@pytest.mark.parametrize("text", ["40", "gpu-hours", "-3 epochs", "0 tokens", "3 days"])
def test_budgets_that_are_none(text: str):
    with pytest.raises(UserError, match="write a positive number"):
        Budget.parse(text)
