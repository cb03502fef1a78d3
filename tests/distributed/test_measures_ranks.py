"""Measures are the same however a training is spread over ranks."""

from pathlib import Path
from typing import Any

import pytest
from support.full import full
from support.measuring import measured, of_a_regression
from support.processes import Ranks
from support.training import TORCH, batch, zero

pytestmark = pytest.mark.processes

NAMES = [
    "gradient_momentum_cosine",
    "sharpness",
    "top_eigenvalue",
    "effective_rank",
    "weight_movement",
    "representation",
    "difficulty",
]


def measuring(*names: str) -> dict[str, Any]:
    return {"measures": {"names": [*NAMES, *names], "every": "4 steps", "iterations": 4, "examples": 5}}


@pytest.mark.parametrize(
    "changes",
    [zero(2), zero(3), full(TORCH), full(zero(1)), full(zero(0)), full(zero(2, offload_optimizer=True))],
    ids=["zero 2", "zero 3", "ddp", "zero 1", "zero 0", "offloaded"],
)
def test_the_same_over_two_ranks(changes: dict[str, Any], two: Ranks, data: Path, tmp_path: Path) -> None:
    names = measuring() if changes == zero(3) else measuring("ntk")
    alone = measured(data, tmp_path / "alone", {**TORCH, **names, **batch(4)})
    spread, _ = two(measured, data, tmp_path / "spread", {**changes, **names, **batch(2)})
    assert spread.keys() == alone.keys()
    for name, by_step in alone.items():
        assert by_step.keys() == spread[name].keys()
        for step, value in by_step.items():
            assert spread[name][step] == pytest.approx(value, rel=2e-3, abs=1e-5), f"{name} at step {step}"


def test_examples_may_be_split_over_ranks(one: Ranks, two: Ranks) -> None:
    ((*curvature, groups),) = one(of_a_regression)
    for *spread, spread_groups in two(of_a_regression):
        assert spread == pytest.approx(curvature, rel=1e-5)
        assert spread_groups == pytest.approx(groups)
