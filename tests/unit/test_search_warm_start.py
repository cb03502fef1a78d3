"""What earlier trainings tell a new search; samplers and policies by name."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage

from lowland.platform.search.choices import POLICIES, SAMPLERS, make_policy, make_sampler
from lowland.platform.search.policies import Promotion
from lowland.platform.search.study import Study
from lowland.platform.search.trials import Earlier
from lowland.platform.search.warm_start import beliefs, misfit
from lowland.trainers.errors import UserError

SPACE = {
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "layers": IntDistribution(2, 8, step=2),
    "kind": CategoricalDistribution(["a", "b"]),
    "b/share": FloatDistribution(0, 1),
}
CONDITIONS = {"b/share": [("kind", "b")]}
CURVE = {1: 2.0, 3: 1.0}


def test_what_does_not_fit_is_skipped_with_its_reason():
    good = {"rate": 1e-3, "layers": 4, "kind": "a"}
    given = {
        "fits": good,
        "fits whole": {**good, "kind": "b", "b/share": 0.5},
        "wide": {**good, "rate": 1.0},
        "odd": {**good, "layers": 3},
        "other kind": {**good, "kind": "c"},
        "less": {**good, "kind": "b"},
        "more": {**good, "warmup": 10},
    }
    found = {name: misfit(SPACE, Earlier(name, parameters, CURVE), CONDITIONS) for name, parameters in given.items()}
    assert found == {
        "fits": "",
        "fits whole": "",
        "wide": "rate: 1.0 lies outside the space",
        "odd": "layers: 3 lies outside the space",
        "other kind": "kind: c lies outside the space",
        "less": "b/share is not known",
        "more": "it also searched warmup",
    }
    assert misfit(SPACE, Earlier("empty", good, {}), CONDITIONS) == "nothing was measured"


def test_earlier_trainings_are_trials_that_rungs_compare_with():
    policy = Promotion(27, first=3)
    study = Study(InMemoryStorage(), "a", {"rate": SPACE["rate"]}, "minimize", optuna.samplers.RandomSampler(seed=0))
    for number in range(3):
        study.add(Earlier(f"old {number}", {"rate": 1e-3}, {3: 1.0 + number}))
    assert [(t.status, t.target) for t in study.trials()] == [("stopped", 3)] * 3
    segment = study.next(policy)
    study.report(segment.trial, 3, 0.5)
    study.ended(segment.trial, policy)
    assert study.next(policy).start == 3, "it beats two thirds of those before it"


def test_related_tasks_become_beliefs():
    generator = np.random.default_rng(0)

    def task(centre: float) -> list[Earlier]:
        rates = 10 ** generator.uniform(-5, -1, 40)
        return [
            Earlier("", {"rate": r, "kind": "ab"[int(r > 1e-3)], "other": 1}, {9: abs(np.log10(r) - centre)})
            for r in rates
        ]

    found = beliefs(SPACE, [task(-2.9), task(-2.5), task(-2.3)], rising=False)
    assert set(found) == {"rate", "kind"}
    assert float(str(found["rate"].centre)) == pytest.approx(10**-2.5, rel=0.5)
    assert found["rate"].deviation < 0.2
    assert found["kind"].centre == "b"
    rising = beliefs(SPACE, [task(-2.5)], rising=True)
    assert float(str(rising["rate"].centre)) < 1e-4, "the farthest from the centre are then the best"


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "cmaes"])
def test_every_name_makes_a_sampler_of_valid_proposals(name: str):
    finite = name == "grid"
    space = {key: SPACE[key] for key in ("rate", "layers") if key == "layers" or not finite}
    study = optuna.create_study(sampler=make_sampler(name, space, 9, 0))
    for _ in range(3):
        study.tell(study.ask(space), 1.0)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "pbt"])
def test_every_name_makes_a_policy(name: str):
    policy = make_policy(name, 51)
    assert policy.full == 51
    assert policy.first == (51 if name == "none" else 3)


def test_names_that_are_not_there():
    with pytest.raises(UserError, match="there are multi-fidelity"):
        make_sampler("bayes", SPACE, 9)
    with pytest.raises(UserError, match="there are promotion"):
        make_policy("asha", 9)
