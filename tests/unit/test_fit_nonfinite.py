"""Values that are not finite, in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.corpus import prepared
from support.training import TORCH, config, not_finite, outcome, train, weights

from lowland.trainers.errors import NonFiniteError

SHORT = {**TORCH, "length": "6 steps", "evaluation": {"every": None}}
EACH = {"checkpoints": {"every": "1 steps", "export": False, "keep_last": 9}}
THIRD = {8}
"""A forward pass of the third step: there are four in each."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("text") / "data")


@pytest.mark.parametrize("kind", ["loss", "overflow", "gradient"])
def test_stop_names_step_batch_and_last_good_checkpoint(data: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(NonFiniteError) as raised, not_finite(kind, THIRD):
        train(config(data, **{**SHORT, **EACH}), tmp_path)
    message = str(raised.value)
    what = "a gradient" if kind == "gradient" else "the loss"
    assert message.startswith(f"step 3: {what} is not finite (examples 16 to 23, rows [")
    assert f"Last good checkpoint: {tmp_path}/checkpoints/step-00000002." in message
    assert "optimizer.lr" in message


def test_without_a_checkpoint_the_message_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="Last good checkpoint: none"), not_finite("loss", THIRD):
        train(config(data, **SHORT), tmp_path)


@pytest.mark.parametrize("kind", ["loss", "overflow", "gradient"])
def test_skip_counts_and_goes_on(data: Path, tmp_path: Path, kind: str) -> None:
    changes = {**SHORT, **EACH, "nonfinite": {"policy": "skip"}}
    found = outcome(data, tmp_path, changes, within=not_finite(kind, THIRD))
    assert found.result.skipped == 1
    assert found.values["train/skipped_steps"] == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 1}
    assert found.losses.keys() == {1, 2, 4, 5, 6}
    before, after = weights(tmp_path, 2), weights(tmp_path, 3)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert sum("the step is skipped" in event for event in found.events) == 1


def test_a_checkpoint_of_a_skipped_step_can_be_resumed(data: Path, tmp_path: Path) -> None:
    """The gradient norm in its metrics is not finite."""
    changes = {**SHORT, "nonfinite": {"policy": "skip"}}
    whole = outcome(data, tmp_path / "whole", changes, within=not_finite("loss", THIRD))
    first = outcome(data, tmp_path / "parts", changes, stop_after=3, within=not_finite("loss", THIRD))
    second = outcome(data, tmp_path / "parts", changes)
    assert second.result.resumed_from == 3
    assert second.result.skipped == 1
    assert {**first.losses, **second.losses} == whole.losses


def test_too_many_in_a_row_stop_the_run(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {**SHORT, "nonfinite": {"policy": "skip", "max_consecutive": 2}}
    apart = outcome(data, tmp_path / "apart", changes, within=not_finite("loss", {4, 12, 20}))
    assert apart.result.skipped == 3
    with pytest.raises(NonFiniteError, match="step 3"), not_finite("loss", {4, 8}):
        train(config(data, **changes), tmp_path / "together")


def test_an_absurd_learning_rate_ends_the_run_before_a_weight_is_not_finite(data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **EACH, "length": "30 steps", "optimizer": {"name": "sgd", "lr": 1e38}}
    with pytest.raises(NonFiniteError, match="is not finite"):
        train(config(data, **changes), tmp_path)
