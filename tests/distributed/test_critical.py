"""Critical Momenta is the same method however it is sharded, and goes on where it stopped at another stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.full import full
from support.processes import Ranks
from support.training import (
    TORCH,
    batch,
    config,
    initial_weights,
    interrupted,
    outcome,
    outcome_until,
    states,
    weights,
    worst_update,
    zero,
)

pytestmark = pytest.mark.processes

STEPS = 20
FEW = {"length": f"{STEPS} steps", "evaluation": {"every": None}}
ROUNDING = 1e-5
"""Of the update after 20 steps.  Two cuts of the batch alone are 6e-6 apart: Adam divides rounding by itself."""


def changes(**fields: Any) -> dict[str, Any]:
    """A short training whose buffer is full after three steps, and is then fought for."""
    common = {"name": "critical_momenta", "lr": 2e-4, "buffer_size": 3, "priority_decay": 0.95}
    return {**FEW, "optimizer": {**common, **fields}}


def distance(folder: Path, reference: Path, data: Path) -> float:
    """How far two trainings are apart after all steps, relative to the update."""
    return worst_update(weights(folder, STEPS), weights(reference, STEPS), initial_weights(config(data)))


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": "tensor_norms"},
        full({"priority": "tensor"}),
        full({"priority": "global_norm", "variant": "sgd", "lr": 2e-2}),
    ],
    ids=["tensor_norms", "tensor", "global_norm of sgd"],
)
def test_exact_under_sharding(two: Ranks, fields: dict[str, Any], data: Path, tmp_path: Path) -> None:
    outcome(data, tmp_path / "whole", {**changes(**fields), **TORCH})
    outcome(data, tmp_path / "cut", {**changes(**fields), **TORCH, **batch(4)})
    assert distance(tmp_path / "cut", tmp_path / "whole", data) < ROUNDING
    for stage in range(4):
        two(outcome, data, tmp_path / str(stage), {**changes(**fields), **zero(stage)})
        assert distance(tmp_path / str(stage), tmp_path / "whole", data) < ROUNDING, stage


def test_another_ranking_is_another_method(data: Path, tmp_path: Path) -> None:
    """So that what was ranked shows in the weights, well above rounding."""
    for priority in ("tensor_norms", "tensor"):
        outcome(data, tmp_path / priority, {**changes(priority=priority), **TORCH})
    assert distance(tmp_path / "tensor", tmp_path / "tensor_norms", data) > 1e-2


def test_goes_on_at_another_stage(two: Ranks, data: Path, tmp_path: Path) -> None:
    outcome(data, tmp_path / "whole", {**changes(priority="tensor"), **TORCH})
    for stop, stage in ((6, 2), (12, 3), (STEPS, 1)):
        two(outcome_until, data, tmp_path / "parts", {**changes(priority="tensor"), **zero(stage)}, stop)
    assert distance(tmp_path / "parts", tmp_path / "whole", data) < ROUNDING


def test_a_bfloat16_buffer_on_the_host_goes_on_to_the_bit(two: Ranks, data: Path, tmp_path: Path) -> None:
    recipe = {**changes(buffer_dtype="bfloat16", buffer_device="cpu"), **zero(2)}
    two(outcome, data, tmp_path / "whole", recipe)
    first, second = two(interrupted, data, tmp_path / "parts", recipe, 7)[0]
    assert (first.result.step, second.result.resumed_from) == (7, 7)
    expected, found = states(tmp_path / "whole", STEPS), states(tmp_path / "parts", STEPS)
    assert {f"buffer_{slot}" for slot in range(3)} < expected.keys() == found.keys()
    for state, tensors in expected.items():
        dtype = torch.bfloat16 if state.startswith("buffer") else torch.float32
        assert all(tensor.dtype == dtype for tensor in tensors.values())
        assert all(torch.equal(found[state][name], tensor) for name, tensor in tensors.items()), state
