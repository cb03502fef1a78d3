"""Population based training: who is replaced, by whom, with which parameters, and from whose checkpoint."""

import math
import random
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from recipe_files import write_recipe

from lowland.platform.recipe import load_recipe
from lowland.platform.runs import RunFolder
from lowland.platform.search.explore import Explorer, moved
from lowland.platform.search.export import as_table
from lowland.platform.search.forks import fork_checkpoint, newest_step
from lowland.platform.search.jobs import Job, Outcome, Resources
from lowland.platform.search.leaderboard import fates
from lowland.platform.search.lineage import changing, lineage
from lowland.platform.search.plots import page
from lowland.platform.search.population import Population
from lowland.platform.search.results import StudyResult, trials_in
from lowland.platform.search.search import Search
from lowland.platform.search.simulate import simulate
from lowland.platform.search.space import BoundSpace
from lowland.platform.search.study import Study
from lowland.platform.search.trial_runs import TrialRuns
from lowland.platform.search.trials import Fork, Origin, Segment, Status, TrialView
from lowland.platform.tracking.run import TrackedRun, find_runs
from lowland.platform.tracking.store import check_store
from lowland.search_spaces import FloatRange, Space
from lowland.trainers.errors import RunError, UserError

SPACE = {"x": FloatDistribution(0.0, 1.0)}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def same(parameters: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
    return dict(parameters)


def member(number: int, *values: float, target: int = 0, status: Status = "paused", origin: Origin | None = None):
    """A trial with values at the ends of intervals of 4, from where it began."""
    start = origin.resource if origin is not None else 0
    curve = {start + 4 * (i + 1): value for i, value in enumerate(values)}
    return TrialView(number, {"x": number / 10}, curve, status, target or max(curve, default=start), origin=origin)


POLICY = Population(16, 4, same, intervals=4)


def test_intervals_are_equal_to_a_part_of_51():
    assert POLICY.levels == (4, 8, 12, 16)
    assert Population(51, 2, same).levels == (6, 13, 19, 26, 32, 38, 45, 51)
    assert (POLICY.first, POLICY.begin(7), POLICY.beyond(8), POLICY.most) == (4, 4, 12, 4)
    with pytest.raises(ValueError, match="at least 2 members"):
        Population(16, 1, same)
    with pytest.raises(ValueError, match="2 to 16 intervals"):
        Population(16, 4, same, intervals=17)


def test_all_begin_first_and_only_who_is_certainly_in_the_middle_goes_on_early():
    two = [member(0, 0.3), member(1, 0.5)]
    assert POLICY.resume(two) is None
    assert POLICY.resume([*two, member(2, target=4, status="running")]) is None, "one may be the worst, one the best"
    three = [*two, member(2, 0.4), member(3, target=4, status="running")]
    assert POLICY.resume(three) == Segment(2, 4, 8), "whatever the last one gives, it is neither best nor worst"


def test_the_worst_is_replaced_by_a_copy_of_the_best_before_that_one_goes_on():
    four = [member(0, 0.3), member(1, 0.5), member(2, 0.4), member(3, 0.2)]
    assert POLICY.resume(four) == Fork(Origin(3, 1, 4), 8, {"x": 0.3})
    copied = [*four, member(4, target=8, status="running", origin=Origin(3, 1, 4))]
    assert POLICY.resume(copied) == Segment(3, 4, 8)
    gone_on = [t if t.number != 3 else member(3, 0.2, target=8, status="running") for t in copied]
    assert POLICY.resume(gone_on) == Segment(0, 4, 8)


def test_the_replaced_is_never_gone_on_with_and_the_copy_is_a_member_from_where_it_began():
    trials = [
        member(0, 0.3, 0.28),
        member(1, 0.5),
        member(2, 0.4, 0.35),
        member(3, 0.2, 0.18),
        member(4, 0.1, origin=Origin(3, 1, 4)),
    ]
    assert POLICY.resume(trials) == Fork(Origin(4, 2, 8), 12, {"x": 0.4}), "the copy is the best of the second interval"
    assert POLICY.share(trials) == pytest.approx(8 / 16)


def test_who_has_no_number_or_failed_is_replaced_and_without_anybody_left_nothing_goes_on():
    lost = [
        member(0, 0.3),
        member(1, math.inf, status="stopped"),
        member(2, target=4, status="failed"),
        member(3, 0.2),
    ]
    first = POLICY.resume(lost)
    assert isinstance(first, Fork)
    second = POLICY.resume([*lost, member(4, target=8, status="running", origin=first.origin)])
    assert isinstance(second, Fork)
    assert {first.origin.replaces, second.origin.replaces} == {1, 2}
    assert {first.origin.parent, second.origin.parent} == {3}
    assert POLICY.resume([member(n, math.inf, status="stopped") for n in range(4)]) is None


def test_refused_proposals_and_earlier_trainings_are_no_members():
    refused = TrialView(0, {}, {4: math.inf}, "stopped", 4, refused=True)
    earlier = TrialView(1, {}, {4: 0.1}, "stopped", 4, source="before")
    three = [refused, earlier, member(2, 0.3), member(3, 0.4), member(4, 0.2)]
    assert POLICY.resume(three) is None, "one more is to begin"
    assert POLICY.resume([*three, member(5, target=4, status="running")]) == Segment(2, 4, 8)
    assert POLICY.share([refused, earlier]) == 0


class Toy:
    """The example of the paper: two weights ascend 1.2 - w0^2 - w1^2 along a gradient that hyper-parameters mask.

    Those of one member alone never lead to the top; weights that are copied between both do.
    """

    def __init__(self) -> None:
        self.weights: dict[int, tuple[float, float]] = {}
        self.begun: dict[int, tuple[float, float]] = {}
        self.gone: list[int] = []

    def begin(self, segment: Segment, parameters: Mapping[str, Any], origin: Origin | None) -> Job:
        number = segment.trial
        if number not in self.weights:
            self.weights[number] = self.weights[origin.parent] if origin is not None else (0.9, 0.9)
            self.begun[number] = self.weights[number]
        mask = (1.0, 0.0) if parameters["x"] < 0.5 else (0.0, 1.0)
        for _ in range(segment.end - segment.start):
            first, second = self.weights[number]
            self.weights[number] = first - 0.1 * mask[0] * first, second - 0.1 * mask[1] * second
        return Job(Resources(1, 1.0, 0, None, "PACK"), {"number": number, "end": segment.end})

    def outcome(self, job: Job) -> Outcome:
        first, second = self.weights[job.task["number"]]
        metrics = {"loss": first**2 + second**2, "train/tokens": 10.0 * job.task["end"], "train/epoch": 0.0}
        return Outcome("reached", result={"metrics": metrics, "step": job.task["end"], "seconds": 1.0}, seconds=1.0)

    def ended(self, number: int, outcome: Outcome, fate: Any) -> None:
        pass

    def rests(self, number: int) -> None:
        pass

    def replaced(self, number: int) -> None:
        self.gone.append(number)

    def settle(self, number: int, outcome: Outcome, fate: Any) -> None:
        pass


def flipped(parameters: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
    return {"x": 1.0 - parameters["x"]}


class ByNumber(RandomSampler):
    """The same proposals whichever driver asks."""

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> float:
        return (0.2, 0.7, 0.4, 0.9)[trial.number]


def toy_search(storage: BaseStorage, toy: Toy, explore: Any = flipped) -> Search:
    study = Study(storage, "toy", SPACE, "minimize", ByNumber())
    policy = Population(48, 4, explore, intervals=12)
    return Search(study, policy, toy, lambda _: [], metric="loss", most=4, budget=None)


def play(held: Search, toy: Toy) -> None:
    while not isinstance(answer := held.next(), str):
        segment, job = answer
        held.ended(segment.trial, toy.outcome(job))


def test_copies_reach_what_no_member_reaches_alone():
    toy = Toy()
    held = toy_search(InMemoryStorage(), toy)
    play(held, toy)
    trials = held.study.trials()
    copies = [t for t in trials if t.origin is not None]
    assert len(copies) == 11, "one at the end of each interval but the last"
    assert sorted(toy.gone) == sorted(t.origin.replaces for t in copies if t.origin)
    assert {t.number: t.status for t in trials if t.number in toy.gone} == dict.fromkeys(toy.gone, "stopped")
    assert sum(t.status == "finished" for t in trials) == 4
    assert min(t.best for t in trials) < 0.2
    alone = 0.9**2 * (1 + 0.9 ** (2 * 48))
    assert alone > 0.8, "the masked weight stays where it was"
    assert held.share() == 1.0


def test_a_copy_tells_how_it_came_about():
    toy, storage = Toy(), InMemoryStorage()
    play(toy_search(storage, toy), toy)
    found = StudyResult("toy", "loss", "minimize", 48, trials_in(storage, "toy"))
    assert found.best is not None
    stretches = lineage(found, found.best)
    assert (stretches[0].start, stretches[-1].end, stretches[-1].trial) == (0, 48, found.best.number)
    assert [one.end for one in stretches[:-1]] == [one.start for one in stretches[1:]], "without gaps"
    assert all(a.parameters["x"] == pytest.approx(1 - b.parameters["x"]) for a, b in pairwise(stretches)), "all flipped"
    assert changing(stretches) == ["x"]
    assert found.trainings == pytest.approx(4.0)
    lines = list(fates(found))
    assert any("replaced by a copy of a better one" in line for line in lines)
    assert "<h2>Schedules</h2>" in page(found, [])
    rows = as_table(found)
    assert set(rows["forked_from"].to_pylist()) - {None} == {t.origin.parent for t in found.trials if t.origin}


def test_what_is_spent_counts_the_parents_training_once():
    toy = Toy()
    held = toy_search(InMemoryStorage(), toy)
    play(held, toy)
    ledger = held.ledger()
    assert ledger.trainings == pytest.approx(4.0)
    assert (ledger.steps, ledger.tokens) == (4 * 48, 4 * 480.0)


def test_a_driver_that_dies_at_any_moment_forks_once(tmp_path: Path):
    """Each one dies with a segment under way, or once all of it is written; the next decides as the last would have."""

    def journal(name: str) -> BaseStorage:
        return JournalStorage(JournalFileBackend(str(tmp_path / name)))

    calm = Toy()
    held = toy_search(journal("calm"), calm)
    play(held, calm)
    toy = Toy()
    for turn in range(400):
        again = toy_search(journal("killed"), toy)
        before = dict(toy.weights)
        answer = again.next()
        if isinstance(answer, str):
            break
        segment, job = answer
        if turn % 2:
            again.ended(segment.trial, toy.outcome(job))
        else:
            toy.weights = before  # what was not saved is lost
            if segment.trial not in before:
                del toy.begun[segment.trial]
    else:
        raise AssertionError("the search does not end")

    def told(search: Search) -> list[Any]:
        return [(t.origin, t.parameters, t.curve, t.status) for t in search.study.trials()]

    assert told(again) == told(held)


def test_a_replaced_trial_is_stopped_by_the_next_driver_if_one_died_before():
    toy = Toy()
    storage = InMemoryStorage()
    held = toy_search(storage, toy)
    for _ in range(4):
        segment, job = held.next()  # type: ignore[misc]
        held.ended(segment.trial, toy.outcome(job))
    assert held.study.next(Population(48, 4, flipped, intervals=12)) == Segment(4, 4, 8)  # and here the driver dies
    (loser,) = held.study.replaced()
    toy_search(storage, toy)
    assert toy.gone == [loser]
    assert held.study.trial(loser).status == "stopped"


class Slope:
    """The lower x, the better, under virtual time."""

    def values(self, parameters: Mapping[str, Any], start: int, end: int) -> list[float]:
        return [parameters["x"] + 1 / r for r in range(start + 1, end + 1)]

    def seconds(self, parameters: Mapping[str, Any], start: int, end: int) -> float:
        return (end - start) * (1 + parameters["x"])


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_under_virtual_time_a_population_trains_its_own_length_and_gets_better(workers: int):
    def closer(parameters: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
        return {"x": parameters["x"] / 2}

    study = Study(InMemoryStorage(), "a", SPACE, "minimize", RandomSampler(seed=0))
    points = simulate(study, Population(16, 8, closer, intervals=4), Slope(), workers=workers, budget=10**6)
    trials = study.trials()
    assert points[-1].resource == 8 * 16
    assert sum(t.status == "finished" for t in trials) == 8
    assert sum(t.origin is not None for t in trials) == 2 * 3
    first = min(t.parameters["x"] for t in trials if t.origin is None)
    assert min(t.parameters["x"] for t in trials) == pytest.approx(first / 2**3), "a copy of a copy of a copy"
    state = {t.number: t.state for t in study._study.trials}
    assert set(state.values()) == {TrialState.COMPLETE, TrialState.PRUNED}


def test_workers_do_not_change_who_is_copied():
    def forks(workers: int) -> list[Any]:
        study = Study(InMemoryStorage(), "a", SPACE, "minimize", RandomSampler(seed=0))
        simulate(study, Population(16, 8, same, intervals=4), Slope(), workers=workers, budget=10**6)
        values = {t.number: t.parameters["x"] for t in study.trials()}
        return sorted(
            (t.origin.resource, values[t.origin.parent], values[t.origin.replaces])
            for t in study.trials()
            if t.origin is not None
        )

    assert forks(1) == forks(3) == forks(8)


# Parameters.

PARAMETERS: dict[str, Any] = {
    "optimizer.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "1 - optimizer.betas.1": {"type": "float", "low": 1e-3, "high": 0.1, "log": True},
    "optimizer.weight_decay": {"type": "float", "low": 0.0, "high": 0.5},
    "batch.micro_batch": {"type": "integer", "low": 1, "high": 2},
    "schedule": {"type": "branch", "alternatives": {"flat": {}, "wsd": {"schedule.name": "wsd"}}},
}


def bound(tmp_path: Path, parameters: dict[str, Any], constraints: tuple[str, ...] = ()) -> BoundSpace:
    space = {"description": "", "parameters": parameters, "constraints": constraints}
    return BoundSpace(Space.model_validate(space), load_recipe(write_recipe(tmp_path / "given")))


@given(st.floats(0, 1), st.booleans(), st.integers(0, 2**32))
def test_what_is_moved_stays_in_its_range_and_moves(place: float, log: bool, seed: int):
    range_ = FloatRange(type="float", low=0.01, high=0.5, log=log)
    value = 0.01 * 50**place if log else 0.01 + place * 0.49
    new = moved(range_, value, random.Random(seed))
    assert 0.01 <= new <= 0.5
    assert new != value


def test_a_step_is_by_a_quarter_or_a_tenth_of_the_range_unless_drawn_anew():
    wide = FloatRange(type="float", low=1e-6, high=1.0, log=True)
    flat = FloatRange(type="float", low=0.0, high=1.0)
    ratios = [moved(wide, 1e-3, random.Random(seed)) / 1e-3 for seed in range(400)]
    steps = [moved(flat, 0.5, random.Random(seed)) - 0.5 for seed in range(400)]
    for values, moves in ((ratios, {1.25, 0.8}), (steps, {0.1, -0.1})):
        near = [v for v in values if any(v == pytest.approx(m) for m in moves)]
        assert 0.68 < len(near) / 400 < 0.82
        assert {round(v, 6) for v in near} == moves
    stepped = FloatRange(type="float", low=0.0, high=1.0, step=0.25)
    assert {moved(stepped, 0.5, random.Random(seed)) for seed in range(200)} == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_only_numbers_of_optimizer_and_schedule_change(tmp_path: Path):
    explorer = Explorer(bound(tmp_path, PARAMETERS))
    assert explorer.names == ("optimizer.lr", "1 - optimizer.betas.1", "optimizer.weight_decay")
    given_ = {
        "optimizer.lr": 1e-3,
        "1 - optimizer.betas.1": 0.05,
        "optimizer.weight_decay": 0.1,
        "batch.micro_batch": 2,
        "schedule": "wsd",
    }
    copy = explorer(given_, random.Random(0))
    assert {name for name in given_ if copy[name] != given_[name]} == set(explorer.names)
    one = Explorer(bound(tmp_path, PARAMETERS), ["optimizer.lr"])(given_, random.Random(0))
    assert {name for name in given_ if one[name] != given_[name]} == {"optimizer.lr"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("batch.micro_batch", "its batch cannot change"),
        ("optimizer.lrr", "the space has no such parameter"),
        ("schedule", "a branch cannot change"),
    ],
)
def test_what_may_not_change_is_refused_with_what_may(name: str, why: str, tmp_path: Path):
    with pytest.raises(UserError, match=why) as caught:
        Explorer(bound(tmp_path, PARAMETERS), [name])
    assert "may change: optimizer.lr, 1 - optimizer.betas.1, optimizer.weight_decay" in str(caught.value)


def test_a_space_in_which_nothing_may_change_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no parameter of the space may change"):
        Explorer(bound(tmp_path, {"batch.micro_batch": PARAMETERS["batch.micro_batch"]}))


def test_copies_keep_the_constraints_of_the_space(tmp_path: Path):
    explorer = Explorer(bound(tmp_path, PARAMETERS, ("optimizer.lr <= 0.002",)))
    given_ = {**dict.fromkeys(PARAMETERS), "optimizer.lr": 0.0019, "1 - optimizer.betas.1": 0.05}
    given_ |= {"optimizer.weight_decay": 0.1, "batch.micro_batch": 2, "schedule": "flat"}
    rates = [explorer(given_, random.Random(seed))["optimizer.lr"] for seed in range(50)]
    assert max(rates) <= 0.002


# Checkpoints.


def run_with(tmp_path: Path, name: str, *steps: int) -> RunFolder:
    folder = RunFolder.open(str(tmp_path), name)
    folder.create()
    for step in steps:
        place = tmp_path / name / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True)
        (place / "rank-0.safetensors").write_text(f"weights of {step}")
        (place / "manifest.json").write_text("{}")
    return folder


def test_a_fork_has_the_newest_checkpoint_whatever_becomes_of_the_parents(tmp_path: Path):
    parent, child = run_with(tmp_path, "parent", 6, 12), run_with(tmp_path, "child")
    assert (newest_step(parent), newest_step(child)) == (12, None)
    fork_checkpoint(parent, child)
    assert newest_step(child) == 12
    for file in (tmp_path / "parent" / "checkpoints" / "step-00000012").iterdir():
        file.unlink()
    assert (tmp_path / "child/checkpoints/step-00000012/rank-0.safetensors").read_text() == "weights of 12"


def test_half_a_fork_is_none_and_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parent, child = run_with(tmp_path, "parent", 12), run_with(tmp_path, "child")
    half = tmp_path / "child/checkpoints/step-00000012"
    half.mkdir(parents=True)
    (half / "rank-0.safetensors").write_text("weig")
    assert newest_step(child) is None
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    fork_checkpoint(parent, child)
    assert (half / "rank-0.safetensors").read_text() == "weights of 12"
    with pytest.raises(RunError, match="no checkpoint"):
        fork_checkpoint(run_with(tmp_path, "new"), child)


def test_a_driver_that_dies_while_it_forks_leaves_one_run_with_the_parents_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    experiment = check_store(uri, "lowland")
    study = TrackedRun.start(uri, experiment, "study").run_id
    space = bound(tmp_path, {"optimizer.lr": PARAMETERS["optimizer.lr"]})
    space.base = space.base.model_copy(update={"storage": str(tmp_path / "runs"), "name": "study"})

    def begin(segment: Segment, origin: Origin | None) -> Job:
        return TrialRuns(space, uri, experiment, study, 51).begin(segment, {"optimizer.lr": 1e-3}, origin)

    parent = begin(Segment(0, 0, 26), None).task["run_id"]
    run_with(tmp_path / "runs" / "study", "trial-0000", 26)
    origin = Origin(parent=0, replaces=1, resource=26)
    with monkeypatch.context() as patch:
        patch.setattr("lowland.platform.search.forks._link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            begin(Segment(2, 26, 51), origin)
    child = begin(Segment(2, 26, 51), origin).task["run_id"]
    folder = RunFolder.open(str(tmp_path / "runs" / "study"), "trial-0002")
    assert newest_step(folder) == 26
    shutil.rmtree(tmp_path / "runs" / "study" / "trial-0000" / "checkpoints")
    assert begin(Segment(2, 26, 51), origin).task["run_id"] == child, "and a third driver needs no parent"
    (run,) = [r for r in find_runs(uri, experiment, "mlflow.parentRunId", study) if r.info.run_id != parent]
    assert run.data.tags["lowland.forked_from"] == parent
    assert (run.data.tags["lowland.forked_at_step"], run.data.tags["lowland.replaces_trial"]) == ("26", "1")
