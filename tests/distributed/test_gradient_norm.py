"""The gradient norm that ZeRO takes from the optimizer is the one it would have taken itself."""

from pathlib import Path

import pytest
import torch
from support.norms import handed_on, handed_on_spoiled
from support.processes import Ranks
from support.training import ADATAMW, outcome, weights, zero

pytestmark = pytest.mark.processes

SHORT = {**ADATAMW, "length": "6 steps", "evaluation": {"every": None}}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_same_norm_in_every_step(two: Ranks, stage: int, data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **zero(stage)}
    plain, _ = two(outcome, data, tmp_path / "plain", changes)
    (found, asked), _ = two(handed_on, data, tmp_path / "handed on", changes)
    assert asked == 0
    norms = plain.values["train/grad_norm"]
    assert len(norms) == 6
    assert found.values["train/grad_norm"] == pytest.approx(norms, rel=2e-6)
    assert found.losses == pytest.approx(plain.losses, rel=2e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_norm_that_is_not_finite_discards_the_step(two: Ranks, stage: int, data: Path, tmp_path: Path) -> None:
    changes = {
        **SHORT,
        **zero(stage),
        "nonfinite": {"policy": "skip"},
        "checkpoints": {"every": "1 steps", "export": False, "keep_last": 9},
    }
    found, _ = two(handed_on_spoiled, data, tmp_path, changes, "gradient", {8, 9}, 1)
    assert found.result.skipped == 1
    before, after = weights(tmp_path, 4), weights(tmp_path, 5)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
