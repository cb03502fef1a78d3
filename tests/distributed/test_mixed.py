"""Mixed optimizers, averages and outer steps are the same at every ZeRO stage, and survive a change of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.full import full
from support.processes import Ranks
from support.training import (
    TORCH,
    config,
    failure,
    initial_weights,
    inside,
    interrupted,
    outcome,
    outcome_until,
    states,
    worst_loss,
    worst_update,
    zero,
)

from lowland.trainers.landscape import LoadedModel

pytestmark = pytest.mark.processes

STEPS = 20
MIXED = {
    "name": "mixed",
    "lr": 1e-3,
    "rules": [
        {"match": "*.mlp.*", "optimizer": {"name": "adafactor", "lr": 3e-3}},
        {"kinds": ["matrices", "norms"], "optimizer": {"name": "adatamw", "lr": 2e-4}},
        {"match": "*", "optimizer": {"name": "adamw"}},
    ],
    "diloco": {"every": 6, "lr": 0.5},
    "ema": {"half_life": "40 samples"},
}
SHORT = {"length": f"{STEPS} steps", "evaluation": {"every": "10 steps"}}
CHANGES = {**SHORT, "optimizer": MIXED}


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training in one process."""
    folder = tmp_path_factory.mktemp("reference")
    outcome(data, folder, {**CHANGES, **TORCH})
    return folder


def assert_same(found: Path, reference: Path, data: Path) -> None:
    """Weights, average and anchor, by the distance relative to the update."""
    expected, initial = states(reference, STEPS), initial_weights(config(data))
    actual = states(found, STEPS)
    for state in ("weight", "ema", "anchor"):
        assert worst_update(actual[state], expected[state], initial) < 1e-5, state
    assert worst_update(expected["ema"], expected["weight"], initial) > 1e-2, "the average is not the weights"


@pytest.mark.parametrize("stage", [full(0), full(1), 2, 3])
def test_stages(two: Ranks, stage: int, data: Path, reference: Path, tmp_path: Path) -> None:
    result = two(outcome, data, tmp_path, {**CHANGES, **zero(stage)})[0]
    assert_same(tmp_path, reference, data)
    assert {"optimizer/1/cosine"} <= result.values.keys()


@pytest.mark.parametrize(("first", "then"), [(zero(1), zero(3)), full(zero(3), zero(2)), full(TORCH, zero(1))], ids=str)
def test_a_resume_at_another_stage(
    two: Ranks, first: dict[str, Any], then: dict[str, Any], data: Path, reference: Path, tmp_path: Path
) -> None:
    """Stopped inside a round of the outer step."""
    two(outcome_until, data, tmp_path, {**CHANGES, **first}, 9)
    assert two(outcome, data, tmp_path, {**CHANGES, **then})[0].result.resumed_from == 9
    assert_same(tmp_path, reference, data)


def apart(**fields: Any) -> dict[str, Any]:
    """Two worker groups on engine torch, with a method that keeps sums."""
    optimizer = {"name": "adatamw", "lr": 1e-3, "diloco": {"groups": 2, "every": 5, "lr": 0.6, **fields}}
    return {**SHORT, **TORCH, "optimizer": optimizer, "log_every": 1}


def test_two_groups_that_meet_after_each_step_are_one(two: Ranks, data: Path, tmp_path: Path) -> None:
    """SGD, H = 1, eta = 1, mu = 0: the mean of the groups' steps is the step of the mean gradient."""
    changes = {**SHORT, **TORCH, "batch": {"micro_batch": 2, "global_sequences": 8, "max_grad_norm": None}}
    sgd = {"name": "sgd", "lr": 0.3, "momentum": 0.0, "weight_decay": 0.0}
    together = outcome(data, tmp_path / "one", {**changes, "optimizer": sgd})
    groups = {**sgd, "diloco": {"groups": 2, "every": 1, "lr": 1.0, "momentum": 0.0}}
    found = two(outcome, data, tmp_path / "two", {**changes, "optimizer": groups})[0]
    assert worst_loss(found.losses, together.losses) < 1e-5
    assert found.values["eval/loss"][STEPS] == pytest.approx(together.values["eval/loss"][STEPS], rel=1e-5)


def test_groups_train_apart_and_go_on_to_the_bit(two: Ranks, data: Path, tmp_path: Path) -> None:
    """Stopped inside a round, where the groups' weights, moments and cosines differ."""
    whole = two(outcome, data, tmp_path / "whole", apart())[0]
    first, second = two(interrupted, data, tmp_path / "parts", apart(), 8)[0]
    assert {**first.losses, **second.losses} == whole.losses
    expected, found = states(tmp_path / "whole", STEPS), states(tmp_path / "parts", STEPS)
    for state in expected:
        assert all(torch.equal(found[state][name], tensor) for name, tensor in expected[state].items()), state
    middle = states(tmp_path / "parts", 8)
    name = next(name for name in middle["weight"] if "q_proj" in name)
    for state in ("weight", "exp_avg"):
        assert not torch.equal(middle[state][name], middle[f"group 1/{state}"][name]), state
    assert torch.equal(expected["weight"][name], expected["group 1/weight"][name]), "20 steps are four rounds"
    assert not torch.equal(expected["exp_avg"][name], expected["group 1/exp_avg"][name])
    # A landscape is told to read the first group's.
    checkpoints = str(tmp_path / "whole" / "checkpoints")
    model = LoadedModel(config(data, **apart(groups=1)), checkpoints, None, torch.device("cpu"))
    assert model.evaluate(model.weights)["eval/loss"] == pytest.approx(whole.values["eval/loss"][STEPS], rel=1e-6)


def test_a_gradient_that_is_not_finite_in_one_group_is_skipped_by_all(two: Ranks, data: Path, tmp_path: Path) -> None:
    changes = {**apart(), "nonfinite": {"policy": "skip"}}
    results = two(inside, data, tmp_path, changes, "not_finite", "gradient", {3}, 1)
    assert [result.result.skipped for result in results] == [1, 1]


def test_groups_need_engine_torch(two: Ranks, data: Path, tmp_path: Path) -> None:
    for changes, message in (
        (zero(1), "deepspeed averages gradients over all workers; set sharding.engine: torch"),
        ({**TORCH, "optimizer": apart(groups=3)["optimizer"]}, "must divide the number of workers, which is 2"),
    ):
        kind, text = two(failure, data, tmp_path, {**apart(), **changes}, "small_files", 0, 1 << 30)[0]
        assert kind == "RecipeError"
        assert message in text
