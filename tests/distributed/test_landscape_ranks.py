"""A checkpoint that several ranks wrote is looked at in one process."""

from pathlib import Path

import pytest
import torch
from support.processes import Ranks
from support.training import config, outcome, zero

from lowland.trainers.landscape import LoadedModel

pytestmark = pytest.mark.processes

SHORT = {"length": "4 steps", "evaluation": {"every": None}}


def test_the_loss_that_sharded_ranks_reported(two: Ranks, data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **zero(3)}
    found, _ = two(outcome, data, tmp_path, changes)
    model = LoadedModel(config(data, **changes), str(tmp_path / "checkpoints"), None, torch.device("cpu"))
    assert model.step == 4
    assert model.evaluate(model.weights)["eval/loss"] == pytest.approx(found.values["eval/loss"][4], rel=1e-5)
