"""A value that is not finite on one rank changes no weight on any."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.full import full
from support.processes import Ranks
from support.training import TORCH, config, failure, inside, outcome, weights, zero

pytestmark = pytest.mark.processes

ENGINES = {"stage 0": zero(0), "stage 1": zero(1), "stage 2": zero(2), "stage 3": zero(3), "torch": TORCH}
SHORT = {"length": "6 steps", "evaluation": {"every": None}}
FIFTH = {8, 9}
"""Forward passes of the fifth step: two micro-batches on each of two ranks make a step."""
SKIP = {"nonfinite": {"policy": "skip"}}
EACH = {"checkpoints": {"every": "1 steps", "export": False, "keep_last": 9}}


@pytest.mark.parametrize(
    ("engine", "kind"),
    [(engine, "gradient") for engine in ENGINES]
    + [("stage 2", "loss"), ("stage 3", "overflow"), ("torch", "overflow")]
    + [full(engine, "loss") for engine in ENGINES if engine != "stage 2"]
    + [full(engine, "overflow") for engine in ENGINES if engine not in ("stage 3", "torch")],
)
def test_a_step_is_skipped_on_all_ranks(two: Ranks, engine: str, kind: str, data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **ENGINES[engine], **SKIP, **EACH}
    found, other = two(inside, data, tmp_path, changes, "not_finite", kind, FIFTH, 1)
    assert found.result.skipped == other.result.skipped == 1
    assert found.losses.keys() == {1, 2, 3, 4, 6}
    (event,) = [text for text in found.events if "not finite" in text]
    assert event.startswith(f"step 5: {'a gradient' if kind == 'gradient' else 'the loss'} is not finite")
    before, after, end = (weights(tmp_path, step) for step in (4, 5, 6))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert any(not torch.equal(end[name], tensor) for name, tensor in before.items())
    assert all(bool(tensor.isfinite().all()) for tensor in end.values())


@pytest.mark.parametrize("engine", ["stage 0", full("stage 1"), full("stage 2"), "stage 3", "torch"])
def test_the_run_ends_with_one_message(two: Ranks, engine: str, data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **ENGINES[engine], "checkpoints": {"every": "2 steps", "export": False}}
    messages = two(failure, data, tmp_path, changes, "not_finite", "loss", FIFTH, 1)
    for kind, message in messages:
        assert kind == "NonFiniteError"
        assert message.startswith("step 5: the loss is not finite (examples 32 to 39, rows ")
        assert f"Last good checkpoint: {tmp_path}/checkpoints/step-00000004" in message
    again = two(outcome, data, tmp_path, changes)[0]
    assert again.result.resumed_from == 4
    assert again.losses.keys() == {5, 6}


@pytest.mark.parametrize(
    ("stage", "micro_batch"),
    [(0, 4), (2, 2), (3, 4), full(1, 2), full(2, 4), full(0, 2), full(1, 4), full(3, 2)],
)
def test_bf16_too(two: Ranks, stage: int, micro_batch: int, data: Path, tmp_path: Path) -> None:
    model = {**config(data).model_dump(include={"model"})["model"], "dtype": "bfloat16"}
    batch: dict[str, Any] = {"batch": {"micro_batch": micro_batch, "global_sequences": 8}}
    changes = {**SHORT, **zero(stage), **SKIP, **EACH, **batch, "model": model}
    calls = FIFTH if micro_batch == 2 else {4}
    found, _ = two(inside, data, tmp_path, changes, "not_finite", "loss", calls, 1)
    assert found.result.skipped == 1
    before, after, end = (weights(tmp_path, step) for step in (4, 5, 6))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(bool(tensor.isfinite().all()) for tensor in end.values())


def test_ranks_that_read_outcomes_late_skip_together(two: Ranks, data: Path, tmp_path: Path) -> None:
    """Nothing but the end asks for an outcome."""
    changes = {**SHORT, **TORCH, **SKIP, "log_every": 6}
    late, other = two(inside, data, tmp_path / "late", changes, "not_finite", "gradient", FIFTH, 1)
    assert late.result.skipped == other.result.skipped == 1
    (event,) = [text for text in late.events if "not finite" in text]
    assert event.startswith("step 5: a gradient is not finite (examples 32 to 39, ")
    two(inside, data, tmp_path / "each", {**changes, "log_every": 1}, "not_finite", "gradient", FIFTH, 1)
    found, expected = weights(tmp_path / "late", 6), weights(tmp_path / "each", 6)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
