"""What is saved by some ranks goes on on others, exactly where it stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.full import full
from support.processes import Ranks
from support.training import (
    ADAMW,
    ADATAMW,
    SGD,
    TORCH,
    config,
    failure,
    initial_weights,
    interrupted,
    outcome,
    outcome_until,
    states,
    weights,
    worst_loss,
    worst_update,
    zero,
)

pytestmark = pytest.mark.processes

STEPS, STOP = 9, 5
SHORT = {"length": f"{STEPS} steps", "evaluation": {"every": "4 steps"}}
OPTIMIZERS = {"adamw": ADAMW, "sgd": SGD, "adatamw": ADATAMW}
ENGINES = {
    "stage 0": zero(0),
    "stage 1": zero(1),
    "stage 2": zero(2),
    "stage 3": zero(3),
    "stage 2 offloaded": zero(2, offload_optimizer=True),
    "stage 3 offloaded": zero(3, offload_optimizer=True),
    "torch": TORCH,
}


@pytest.mark.parametrize(
    ("optimizer", "engine"),
    [("adamw", engine) for engine in ("stage 1", "stage 2", "stage 3")]
    + [full("adamw", engine) for engine in ("stage 0", "stage 2 offloaded", "stage 3 offloaded", "torch")]
    + [("adatamw", "stage 2"), ("sgd", "stage 1"), ("sgd", "torch")]
    + [full("adatamw", engine) for engine in ENGINES if engine != "stage 2"]
    + [full("sgd", engine) for engine in ("stage 2", "stage 3 offloaded")],
)
def test_bitwise_equal_to_a_run_that_was_never_stopped(
    two: Ranks, optimizer: str, engine: str, data: Path, tmp_path: Path
) -> None:
    changes = {**SHORT, **OPTIMIZERS[optimizer], **ENGINES[engine]}
    whole = two(outcome, data, tmp_path / "whole", changes)[0]
    first, second = two(interrupted, data, tmp_path / "parts", changes, STOP)[0]
    assert first.result.interrupted
    assert first.result.step == STOP
    assert second.result.resumed_from == STOP
    assert {**first.losses, **second.losses} == whole.losses
    assert second.values["eval/loss"][STEPS] == whole.values["eval/loss"][STEPS]
    expected, found = states(tmp_path / "whole", STEPS), states(tmp_path / "parts", STEPS)
    assert found.keys() == expected.keys()
    for state, tensors in expected.items():
        assert found[state].keys() == tensors.keys()
        assert all(torch.equal(found[state][name], tensor) for name, tensor in tensors.items()), state


@pytest.mark.parametrize("optimizer", [full("adamw"), "adatamw"])
def test_goes_on_at_another_world_size_and_stage(
    one: Ranks, two: Ranks, four: Ranks, optimizer: str, data: Path, tmp_path: Path
) -> None:
    changes = {"length": "24 steps", "evaluation": {"every": None}, **OPTIMIZERS[optimizer]}
    whole = outcome(data, tmp_path / "whole", {**changes, **TORCH})
    places: list[tuple[Ranks, dict[str, Any]]] = [
        (two, zero(2)),
        (one, zero(3)),
        (two, TORCH),
        (four, zero(1)),
        (two, zero(3)),
        (four, zero(0)),
    ]
    losses: dict[int, float] = {}
    for turn, (ranks, sharding) in enumerate(places, start=1):
        part = ranks(outcome_until, data, tmp_path / "parts", {**changes, **sharding}, 4 * turn)[0]
        assert part.result.resumed_from == (4 * (turn - 1) or None)
        assert min(part.losses) == 4 * (turn - 1) + 1, "no step is repeated or left out"
        losses |= part.losses
    assert worst_loss(losses, whole.losses) < 1e-5
    expected, initial = weights(tmp_path / "whole", 24), initial_weights(config(data))
    assert worst_update(weights(tmp_path / "parts", 24), expected, initial) < 1e-4


@pytest.mark.parametrize("stage", [full(0), full(1), 2, full(3)])
def test_bf16_masters_survive_a_resume(two: Ranks, stage: int, data: Path, tmp_path: Path) -> None:
    model = {**config(data).model_dump(include={"model"})["model"], "dtype": "bfloat16"}
    changes = {**SHORT, **zero(stage), "model": model}
    whole = two(outcome, data, tmp_path / "whole", changes)[0]
    first, second = two(interrupted, data, tmp_path / "parts", changes, STOP)[0]
    assert {**first.losses, **second.losses} == whole.losses
    expected, found = weights(tmp_path / "whole", STEPS), weights(tmp_path / "parts", STEPS)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(x, x.bfloat16().float()) for x in expected.values()), "masters are fp32"


@pytest.mark.parametrize("sharding", [zero(2), TORCH], ids=["stage 2", "torch"])
def test_a_rank_that_cannot_write_fails_on_all_and_spoils_nothing(
    two: Ranks, sharding: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    changes = {**SHORT, **sharding, "checkpoints": {"every": "4 steps", "export": False, "keep_last": 3}}
    two(outcome_until, data, tmp_path, changes, 4)
    rank = 0 if sharding is TORCH else 1
    results = two(failure, data, tmp_path, changes, "small_files", rank, 4096)
    assert len(set(results)) == 1, "every rank raises the same"
    kind, message = results[0]
    assert kind == "RunError"
    assert "step-00000008 could not be written" in message
    assert f"rank {rank}" in message
    assert two(outcome, data, tmp_path, changes)[0].result.resumed_from == 4


def test_a_checkpoint_folder_that_cannot_be_made_fails_on_all(two: Ranks, data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **zero(1), "checkpoints": {"every": "4 steps", "export": False}}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000008").write_text("a file where a folder should be")
    results = two(failure, data, tmp_path, changes, "small_files", 0, 1 << 30)
    assert len(set(results)) == 1
    assert results[0][0] == "RunError"
    assert "step-00000008 could not be written: rank 0" in results[0][1]
    assert (tmp_path / "checkpoints" / "step-00000004" / "manifest.json").is_file()


def test_one_damaged_part_sends_all_ranks_to_the_checkpoint_before(two: Ranks, data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **zero(2), "checkpoints": {"every": "4 steps", "export": False, "keep_last": 3}}
    whole = two(outcome, data, tmp_path, changes)[0]
    for step in (8, 9):
        part = tmp_path / "checkpoints" / f"step-{step:08d}" / "rank-00001.safetensors"
        damaged = bytearray(part.read_bytes())
        damaged[-5] ^= 1
        part.write_bytes(bytes(damaged))
    again = two(outcome, data, tmp_path, changes)[0]
    assert again.result.resumed_from == 4
    assert again.losses == {step: loss for step, loss in whole.losses.items() if step > 4}


def test_another_model_or_optimizer_is_refused_on_all_ranks(two: Ranks, data: Path, tmp_path: Path) -> None:
    two(outcome_until, data, tmp_path, {**SHORT, **zero(3)}, 3)
    results = two(failure, data, tmp_path, {**SHORT, **zero(3), **ADATAMW}, "small_files", 0, 1 << 30)
    assert len(set(results)) == 1
    assert results[0][0] == "DataError"
    assert "cannot be resumed: rank 0: it was written with adamw, this run has adatamw" in results[0][1]
