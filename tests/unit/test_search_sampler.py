"""The Gaussian process and the sampler that stands on it."""

import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage

from lowland.platform.search.policies import Promotion
from lowland.platform.search.samplers import MultiFidelitySampler, multi_fidelity
from lowland.platform.search.samplers.acquisition import log_improvement
from lowland.platform.search.samplers.beliefs import Beliefs
from lowland.platform.search.samplers.encoding import Encoding
from lowland.platform.search.samplers.gaussian_process import Array, GaussianProcess, _loss
from lowland.platform.search.samplers.multi_fidelity import Aim
from lowland.platform.search.samplers.observations import by_distance, by_rank
from lowland.platform.search.samplers.pareto import front, front_value, scaling
from lowland.platform.search.simulate import simulate
from lowland.platform.search.study import Study
from lowland.platform.search.trials import PAUSED, TARGET
from lowland.search_spaces import Prior

SPACE = {
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "share": FloatDistribution(0.0, 1.0),
    "step": FloatDistribution(0.0, 1.0, step=0.25),
    "layers": IntDistribution(1, 5),
    "units": IntDistribution(16, 1024, log=True),
    "kind": CategoricalDistribution(["a", "b", None]),
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@given(st.data())
@settings(deadline=None)
def test_any_point_is_a_valid_setting_and_any_setting_a_point(data: st.DataObject):
    encoding = Encoding(SPACE)
    point = np.array(data.draw(st.lists(st.floats(0, 1), min_size=8, max_size=8)))
    setting = encoding.decode(point)
    assert all(SPACE[name]._contains(SPACE[name].to_internal_repr(value)) for name, value in setting.items())
    again = encoding.decode(encoding.encode([setting])[0])
    for name, value in setting.items():
        assert again[name] == (pytest.approx(value) if isinstance(value, float) else value)


def test_the_gradient_of_the_posterior_is_its_slope():
    generator = np.random.default_rng(0)
    inputs, targets = generator.random((12, 3)), generator.normal(size=12)
    differences = (inputs[:, None] - inputs[None]) ** 2
    theta = generator.normal(size=5) * 0.3
    _, gradient = _loss(theta, differences, targets)
    for index in range(5):
        shift = np.eye(5)[index] * 1e-6
        slope = (_loss(theta + shift, differences, targets)[0] - _loss(theta - shift, differences, targets)[0]) / 2e-6
        assert gradient[index] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_the_process_interpolates_and_knows_what_it_does_not_know():
    inputs = np.linspace(0, 0.5, 9)[:, None]
    targets = np.sin(6 * inputs[:, 0])
    process = GaussianProcess.fit(inputs, targets)
    mean, deviation = process.predict(np.array([[0.25], [0.28], [1.0]]))
    assert mean[:2] == pytest.approx(np.sin([1.5, 1.68]), abs=0.02)
    assert deviation[1] < 0.1 * deviation[2]


def test_irrelevant_dimensions_get_long_scales():
    generator = np.random.default_rng(1)
    inputs = generator.random((40, 3))
    process = GaussianProcess.fit(inputs, np.sin(5 * inputs[:, 1]))
    assert process.theta[3] == min(process.theta[2:])


class Valley:
    """Best at rate 1e-3 and share 0.7; short trainings tell most of it."""

    def values(self, parameters: dict[str, float], start: int, end: int) -> list[float]:
        floor = (math.log10(parameters["rate"]) + 3) ** 2 + 4 * (parameters["share"] - 0.7) ** 2
        return [floor + (1 + 0.3 * parameters["share"]) / r for r in range(start + 1, end + 1)]

    def seconds(self, parameters: dict[str, float], start: int, end: int) -> float:
        return float(end - start)


def regret(sampler: optuna.samplers.BaseSampler, workers: int) -> float:
    space = {name: SPACE[name] for name in ("rate", "share")}
    study = Study(InMemoryStorage(), "a", space, "minimize", sampler)
    policy = Promotion(27, first=3)
    best = simulate(study, policy, Valley(), workers=workers, budget=27 * 6)[-1].best
    return best - 1.21 / 27


@pytest.mark.parametrize("workers", [1, 4])
def test_it_finds_in_six_trainings_what_chance_does_not(workers: int):
    space = {name: SPACE[name] for name in ("rate", "share")}
    ours = np.mean([regret(MultiFidelitySampler(space, 27, seed=seed), workers) for seed in range(3)])
    chance = np.mean([regret(RandomSampler(seed=seed), workers) for seed in range(3)])
    assert ours < 0.3 * chance


def test_an_earlier_fit_cannot_hold_a_process_in_a_poor_maximum():
    inputs = np.random.default_rng(0).random((12, 2))
    targets = np.sin(15 * inputs[:, 0])
    only_noise = np.array([-4.0, 0.0, 4.0, 4.0])
    found, fresh = (GaussianProcess.fit(inputs, targets, start) for start in (only_noise, None))
    assert np.array_equal(found.theta, fresh.theta)
    again = GaussianProcess.fit(inputs, targets, fresh.theta, iterations=1)
    assert again.theta == pytest.approx(fresh.theta, abs=0.1), "and a good one is not lost"


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9, unique=True))
@settings(max_examples=30, deadline=None)
def test_by_rank_only_the_order_counts(values: list[int]):
    found = by_rank(np.array(values, float))
    assert np.array_equal(np.argsort(found), np.argsort(values))
    assert by_rank(np.exp(np.array(values, float))) == pytest.approx(found)
    assert (found.mean(), found.std()) == pytest.approx((0, 1))
    assert by_rank(-np.array(values, float)) == pytest.approx(-found)


def test_by_rank_ties_are_equal_and_infinite_values_worst():
    assert by_rank(np.array([2.0, 1.0, 3.0])) == pytest.approx([0, -math.sqrt(1.5), math.sqrt(1.5)])
    found = by_rank(np.array([1.0, math.inf, 5.0, math.nan, 5.0]))
    assert found[0] < found[2] == found[4] < found[1] == found[3]
    assert not by_rank(np.full(3, math.inf)).any()


def test_by_distance_measurements_keep_their_order_and_the_good_ones_their_differences():
    values = np.array([1.0, 1.1, 1.2, 1.5, 2.0, 1e6, math.inf])
    found = by_distance(values)
    assert list(found) == sorted(found)
    assert found[5] < found[6] < 2 * found[5]
    assert found.mean() == pytest.approx(0)
    assert found.std() == pytest.approx(1)
    assert by_distance(10 * values + 3) == pytest.approx(found)
    assert found[1] - found[0] > (found[5] - found[4]) / 100, "though it is a ten-millionth of the other"
    assert not by_distance(np.full(3, math.inf)).any()


def test_rank_and_distance_decide_in_turns():
    space = {name: SPACE[name] for name in ("rate", "share")}

    def proposal(number: int, scale: Callable[[float], float]) -> dict[str, float]:
        study = optuna.create_study(sampler=MultiFidelitySampler(space, 9, startup=number, seed=0))
        for _ in range(number):
            trial = study.ask(space)
            trial.report(scale(Valley().values(trial.params, 8, 9)[0]), step=9)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return study.ask(space).params

    assert proposal(6, math.exp) == proposal(6, float), "ranks do not know of scales"
    assert proposal(7, math.exp) != proposal(7, float)
    assert proposal(7, lambda value: 10 * value + 3) == pytest.approx(proposal(7, float))


def test_one_trial_in_eight_is_random():
    space, last = {"share": FloatDistribution(0.0, 1.0)}, []
    for seed in range(12):
        study = optuna.create_study(sampler=MultiFidelitySampler(space, 9, startup=3, seed=seed))
        for _ in range(9):
            trial = study.ask(space)
            trial.report((trial.params["share"] - 0.5) ** 2, step=9)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        last.append(study.trials[8].params["share"])
    assert sum(abs(x - 0.5) > 0.2 for x in last) >= 4, "the model by itself would stay about the middle"


def test_a_trial_under_way_is_not_proposed_again_and_a_paused_one_does_not_count_as_under_way():
    space = {"share": FloatDistribution(0.0, 1.0)}
    study = optuna.create_study(sampler=MultiFidelitySampler(space, 9, startup=2, seed=0))
    for x in (0.1, 0.5, 0.9):
        trial = study.ask({"share": FloatDistribution(x, x + 1e-9)})
        trial.report((x - 0.6) ** 2, step=9)
        trial.set_user_attr(TARGET, 9)
        trial.set_user_attr(PAUSED, 9)
    proposals = [study.ask(space).params["share"] for _ in range(3)]
    assert min(abs(a - b) for i, a in enumerate(proposals) for b in proposals[:i]) > 1e-4


@pytest.mark.parametrize(("running", "same"), [(False, True), (True, False)])
def test_beside_running_trials_proposals_are_bolder(running: bool, same: bool, monkeypatch: pytest.MonkeyPatch):
    """And one worker by itself proposes what it would without any margin."""
    space, found = {name: SPACE[name] for name in ("rate", "share")}, []
    for bold in (0.0, 4.0):
        monkeypatch.setattr(multi_fidelity, "_BOLD", bold)
        study = optuna.create_study(sampler=MultiFidelitySampler(space, 9, startup=9, seed=0))
        for trial in [study.ask(space) for _ in range(9)][running:]:
            trial.report(Valley().values(trial.params, 8, 9)[0], step=9)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        found.append(study.ask(space).params)
    assert (found[0] == found[1]) is same


def test_the_larger_the_margin_the_more_uncertainty_counts():
    means, deviations = np.array([-0.5, 0.0]), np.array([0.2, 0.5])
    assert [int(log_improvement(-margin, means, deviations).argmax()) for margin in (0.0, 0.4, 2.0)] == [0, 0, 1]


def test_where_trainings_diverge_few_more_are_proposed():
    space = {"share": FloatDistribution(0.0, 1.0)}
    study = optuna.create_study(sampler=MultiFidelitySampler(space, 9, startup=4, seed=0))
    for _ in range(16):
        trial = study.ask(space)
        x = trial.params["share"]
        trial.report(math.inf if x > 0.3 else (x - 0.2) ** 2, step=9)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    later = [trial.params["share"] for trial in study.trials[4:] if trial.number % 8]
    assert sum(x > 0.3 for x in later) <= 4, "of a uniform draw it would be 8 of 11"
    assert min(abs(x - 0.2) for x in later) < 0.03


def test_broken_constraints_make_parameters_unusable():
    space = {"share": FloatDistribution(0.0, 1.0)}
    study = optuna.create_study(sampler=MultiFidelitySampler(space, 9, startup=4, seed=0))
    for _ in range(16):
        trial = study.ask(space)
        x = trial.params["share"]
        trial.report(-x, step=9)
        trial.set_constraint("memory", x - 0.6)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    tried = [trial.params["share"] for trial in study.trials]
    assert sum(x > 0.7 for x in tried[9:]) <= 1, "though far beyond the border the metric is better"
    assert max(x for x in tried if x <= 0.6) > 0.59, "up to the border"


PRIORS = {"rate": Prior(centre=3e-3, confidence=0.6), "kind": Prior(centre="b", confidence=0.8)}


def test_beliefs_peak_at_the_centre_and_are_what_they_say():
    encoding = Encoding(SPACE)
    beliefs = Beliefs(encoding, PRIORS)
    drawn = beliefs.sample(4000, np.random.default_rng(0))
    centre = encoding.encode([{"rate": 3e-3}])[0, 0]
    assert np.mean(np.abs(drawn[:, 0] - centre) < 0.1) == pytest.approx(0.6, abs=0.03)
    kinds = [encoding.decode(point)["kind"] for point in drawn[:1000]]
    assert kinds.count("b") / 1000 > 0.8
    density = beliefs.log_density(np.concatenate([beliefs.centre[None], encoding.snap(drawn)]))
    assert density[0] == max(density)
    assert min(density) >= 2 * math.log(0.25) - 1e-9, "doubt bounds what a wrong belief costs"


def test_trust_in_a_belief_is_what_the_trials_say_of_it():
    beliefs = Beliefs(Encoding({"rate": SPACE["rate"]}), {"rate": Prior(centre=1e-3, confidence=0.6)})
    points = np.linspace(0, 1, 9)[:, None]
    distance = np.abs(points[:, 0] - beliefs.centre[0])
    assert beliefs.trust(points, distance) == pytest.approx(1 - 1 / 3), "nine values correlate by a third by chance"
    assert beliefs.trust(points, -distance) == 0.0
    assert beliefs.trust(points[:4], -distance[:4]) == 1.0, "too few to tell"
    assert 0 <= beliefs.trust(points, np.sin(40 * points[:, 0])) < 0.6


def test_a_belief_that_the_trials_contradict_has_no_part_in_what_a_proposal_is_worth():
    space = {"share": FloatDistribution(0.0, 1.0)}
    study = optuna.create_study()
    for x in np.linspace(0, 1, 9):
        study.enqueue_trial({"share": x})
        study.tell(study.ask(space), (x - 0.1) ** 2)
    tried = np.linspace(0, 1, 9)[:, None]
    means = (tried[:, 0] - 0.1) ** 2
    process = GaussianProcess.fit(np.column_stack([tried, np.ones(9)]), means)

    def worth(centre: float | None) -> Array:
        priors = {} if centre is None else {"share": Prior(centre=centre, confidence=0.8)}
        sampler = MultiFidelitySampler(space, 9, priors=priors)
        return sampler._worth(study.trials, tried, means, process)(tried)

    assert np.array_equal(worth(0.9), worth(None))
    assert (worth(0.1) - worth(None))[1] > (worth(0.1) - worth(None))[7], "one that they bear out has"


def trainings(priors: dict[str, Prior] | None, seed: int) -> float:
    """What a search of the valley needs until it is near the bottom."""
    space = {name: SPACE[name] for name in ("rate", "share")}
    sampler = MultiFidelitySampler(space, 27, seed=seed, priors=priors)
    study = Study(InMemoryStorage(), "a", space, "minimize", sampler)
    near = 1.21 / 27 + 0.03
    return simulate(study, Promotion(27, first=3), Valley(), workers=1, budget=27 * 12, until=near)[-1].resource / 27


def test_a_good_belief_helps_and_a_wrong_one_washes_out():
    good = {"rate": Prior(centre=1e-3, confidence=0.8), "share": Prior(centre=0.7, confidence=0.8)}
    wrong = {"rate": Prior(centre=1e-1, confidence=0.8), "share": Prior(centre=0.0, confidence=0.8)}
    space = {name: SPACE[name] for name in ("rate", "share")}
    first = MultiFidelitySampler(space, 27, seed=0, priors=good)
    assert optuna.create_study(sampler=first).ask(space).params == pytest.approx({"rate": 1e-3, "share": 0.7})
    without, helped, misled = (np.mean(np.log([trainings(p, seed) for seed in range(4)])) for p in (None, good, wrong))
    assert helped < without + math.log(0.75)
    assert misled < without + math.log(1.2)


def test_what_does_not_count_makes_no_difference():
    space = {"kind": CategoricalDistribution(["a", "b"]), "a/x": FloatDistribution(0, 1)}
    encoding = Encoding(space, {"a/x": [("kind", "a")]})
    one, other = encoding.encode([{"kind": "b", "a/x": 0.1}, {"kind": "b", "a/x": 0.9}])
    assert np.array_equal(one, other)
    assert encoding.encode([{"kind": "a", "a/x": 0.1}])[0, -1] == pytest.approx(0.1)
    assert np.array_equal(encoding.snap(np.array([[0.2, 0.7, 0.9]])), [[0.0, 1.0, 0.5]])


def test_what_is_not_allowed_is_not_proposed():
    space = {name: SPACE[name] for name in ("rate", "share")}
    sampler = MultiFidelitySampler(space, 27, startup=3, seed=0, allowed=lambda p: p["share"] < 0.4)
    study = Study(InMemoryStorage(), "a", space, "minimize", sampler)
    simulate(study, Promotion(27, first=3), Valley(), workers=2, budget=60)
    assert all(trial.parameters["share"] < 0.4 for trial in study.trials())


def test_the_front_and_how_parameters_grow_along_it():
    costs, values = np.array([0.0, 1.0, 1.0, 2.0, 3.0]), np.array([5.0, 4.0, 6.0, 4.5, 1.0])
    assert list(front(costs, values)) == [0, 1, 4]
    at = np.array([-1.0, 0.5, 1.5, 9.0])
    drawn = front_value(costs, values, at, np.random.default_rng(1))
    assert list(drawn) == sorted(drawn, reverse=True)
    assert drawn[-1] == 1.0
    assert drawn[0] in (5.0, 4.0), "a cost within the front is drawn"
    slopes, intercepts = scaling(costs, values, 2 * costs[:, None] + 1)
    assert (slopes[0], intercepts[0]) == pytest.approx((2.0, 1.0))


class Priced(Valley):
    """The wider the share, the dearer."""

    def seconds(self, parameters: dict[str, float], start: int, end: int) -> float:
        return float(end - start) * 300 ** parameters["share"]


@pytest.mark.parametrize("aim", ["quality per cost", "pareto"])
def test_with_the_cost_in_mind_proposals_are_cheaper(aim: Aim):
    space = {name: SPACE[name] for name in ("rate", "share")}

    def share(aim: Aim) -> float:
        sampler = MultiFidelitySampler(space, 27, seed=0, aim=aim)
        study = Study(InMemoryStorage(), "a", space, "minimize", sampler)
        simulate(study, Promotion(27, first=3), Priced(), workers=1, budget=27 * 4)
        return float(np.mean([trial.parameters["share"] for trial in study.trials()]))

    assert share(aim) < share("quality") - 0.02


class Corner:
    """The best lies in a corner, where all proposals would like to be; the same parameters give the same values."""

    def values(self, parameters, start, end):
        floor = 4 - 2 * parameters["x"] - parameters["y"] - 0.2 * parameters["z"]
        return [floor + 2 / r for r in range(start + 1, end + 1)]

    def seconds(self, parameters, start, end):
        return float(end - start)


def test_what_was_tried_is_not_proposed_again():
    space = {name: FloatDistribution(0.0, 1.0) for name in "xyz"}
    study = Study(InMemoryStorage(), "a", space, "minimize", MultiFidelitySampler(space, 27, seed=0))
    simulate(study, Promotion(27), Corner(), workers=2, budget=27 * 8)
    points = np.array([[trial.parameters[name] for name in "xyz"] for trial in study.trials()])
    apart = np.abs(points[:, None] - points[None]).max(2) + np.eye(len(points))
    assert len(points) > 25
    assert apart.min() > 1e-3


def test_where_nothing_could_be_measured_it_is_tried_again():
    space = {"x": IntDistribution(0, 3)}
    study = optuna.create_study(sampler=MultiFidelitySampler(space, 9, startup=3, seed=0))
    for x in range(4):
        study.enqueue_trial({"x": x})
        trial = study.ask(space)
        if x == 3:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            trial.report(x, 9)
    assert study.ask(space).params["x"] == 3, "the others are better, and tried"


def test_where_all_was_tried_it_is_proposed_again():
    space = {"kind": IntDistribution(0, 2), "other": IntDistribution(0, 1)}
    study = Study(InMemoryStorage(), "a", space, "minimize", MultiFidelitySampler(space, 9, seed=0))

    class Kinds:
        def values(self, parameters, start, end):
            return [parameters["kind"] + parameters["other"] + 1 / r for r in range(start + 1, end + 1)]

        def seconds(self, parameters, start, end):
            return float(end - start)

    simulate(study, Promotion(9), Kinds(), workers=1, budget=60)
    assert len(study.trials()) > 12
    assert study.trials()[-1].parameters["kind"] in (0, 1, 2)
