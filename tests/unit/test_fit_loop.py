"""What a training in one process records, evaluates, saves and resumes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.corpus import prepared
from support.training import (
    ADATAMW,
    LLAMA,
    SGD,
    TORCH,
    Recorder,
    batch,
    config,
    interrupted,
    outcome,
    states,
    weights,
    worst_loss,
)

from lowland.trainers.checkpoints import CheckpointStore
from lowland.trainers.data.batches import TrainBatches
from lowland.trainers.errors import DataError, RecipeError, RunError
from lowland.trainers.fit import Places, fit
from lowland.trainers.tasks import causal_lm
from lowland.trainers.world import World

SHORT = {**TORCH, "length": "9 steps", "evaluation": {"every": None}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("text") / "data")


def saving(every: str, **fields: Any) -> dict[str, Any]:
    return {"checkpoints": {"every": every, "export": False, **fields}}


def steps_of(folder: Path) -> list[int]:
    return CheckpointStore(str(folder / "checkpoints")).steps()


def test_learns(data: Path, tmp_path: Path) -> None:
    found = outcome(data, tmp_path, TORCH)
    assert found.losses[30] < 0.7 * found.losses[1]
    assert found.result.step == found.result.total_steps == 30
    assert not found.result.interrupted
    assert found.result.checkpoint == f"{tmp_path}/checkpoints/step-00000030"
    assert 0 < found.result.seconds < 600


def test_records_and_evaluates_when_asked(data: Path, tmp_path: Path) -> None:
    found = outcome(data, tmp_path, {**SHORT, "log_every": 4, "evaluation": {"every": "3 steps"}})
    assert found.losses.keys() == {4, 8, 9}
    assert found.values["eval/loss"].keys() == {3, 6, 9}
    assert found.values["train/tokens"] == {4: 4 * 256, 8: 8 * 256, 9: 9 * 256}
    assert found.values["train/epoch"] == {4: 0.5, 8: 1.0, 9: 1.125}
    assert set(found.values) >= {"train/grad_norm", "train/lr", "perf/step_seconds", "perf/data_seconds"}


def test_the_recorded_loss_is_the_mean_per_token_since_the_last_record(data: Path, tmp_path: Path) -> None:
    each = outcome(data, tmp_path / "each", SHORT).losses
    thirds = outcome(data, tmp_path / "thirds", {**SHORT, "log_every": 3}).losses
    for last, loss in thirds.items():
        # Every batch of this text has the same number of targets.
        assert loss == pytest.approx(sum(each[last - i] for i in range(3)) / 3, rel=1e-6)


@pytest.mark.parametrize("length", ["6 steps", "1_500 tokens", "0.75 epochs"])
def test_lengths(data: Path, tmp_path: Path, length: str) -> None:
    assert outcome(data, tmp_path, {**SHORT, "length": length}).result.total_steps == 6


@pytest.mark.parametrize("optimizer", [{}, SGD, ADATAMW], ids=["adamw", "sgd", "adatamw"])
@pytest.mark.parametrize("stop", [1, 4])
def test_resume_is_bitwise(data: Path, tmp_path: Path, optimizer: dict[str, Any], stop: int) -> None:
    changes = {**SHORT, **optimizer}
    whole = outcome(data, tmp_path / "whole", changes)
    first, second = interrupted(data, tmp_path / "parts", changes, stop)
    assert first.result.interrupted
    assert first.result.step == stop
    assert second.result.resumed_from == stop
    assert {**first.losses, **second.losses} == whole.losses
    expected, found = states(tmp_path / "whole", 9), states(tmp_path / "parts", 9)
    assert found.keys() == expected.keys()
    for state, tensors in expected.items():
        assert all(torch.equal(found[state][name], tensor) for name, tensor in tensors.items()), state


def test_resume_restores_dropout(data: Path, tmp_path: Path) -> None:
    model = {"config": {**LLAMA, "attention_dropout": 0.3}, "attention": "eager"}
    changes = {**SHORT, "model": model}
    whole = outcome(data, tmp_path / "whole", changes)
    first, second = interrupted(data, tmp_path / "parts", changes, 4)
    assert {**first.losses, **second.losses} == whole.losses
    assert whole.losses[2] != outcome(data, tmp_path / "without", SHORT).losses[2], "dropout is in use"


def test_a_finished_training_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    first, second = outcome(data, tmp_path, SHORT), outcome(data, tmp_path, SHORT)
    assert second.values == {}
    assert second.result.resumed_from == 9
    assert second.result.checkpoint == first.result.checkpoint
    assert second.result.metrics == first.result.metrics
    assert second.result.seconds >= CheckpointStore(str(tmp_path / "checkpoints")).manifest(9).state.seconds


def test_seconds_and_counters_add_up_over_attempts(data: Path, tmp_path: Path) -> None:
    first, second = interrupted(data, tmp_path, SHORT, 4)
    assert second.result.seconds > first.result.seconds > 0
    state = CheckpointStore(str(tmp_path / "checkpoints")).manifest(9).state
    assert (state.step, state.examples, state.tokens) == (9, 72, 9 * 256)
    assert second.result.seconds > state.seconds
    assert state.seconds > first.result.seconds


def test_goes_on_with_the_very_next_example(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Watched(TrainBatches):
        def _step(self, first: int) -> Any:
            made = super()._step(first)
            seen.extend(made.rows.tolist())
            return made

    monkeypatch.setattr(causal_lm, "TrainBatches", Watched)
    changes = {**SHORT, "data": {"path": str(data), "prefetch": 0}}
    outcome(data, tmp_path / "whole", changes)
    whole, seen[:] = list(seen), []
    interrupted(data, tmp_path / "parts", changes, 5)
    assert len(whole) == 72
    assert seen == whole[:48] + whole[40:], "the sixth step was taken ahead of its time, and is taken again"
    assert sorted(whole[:64]) == list(range(64)), "an epoch shows every row once"


def test_stopping_at_the_last_step_is_finishing(data: Path, tmp_path: Path) -> None:
    found = outcome(data, tmp_path, SHORT, stop_after=9)
    assert not found.result.interrupted
    assert found.values["eval/loss"].keys() == {9}


def test_retention_by_count_and_best_metric(data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **saving("1 steps", keep_last=2, keep_best=1), "evaluation": {"every": "1 steps"}}
    found = outcome(data, tmp_path, {**changes, "optimizer": {"name": "adamw", "lr": 0.3}})
    losses = found.values["eval/loss"]
    assert steps_of(tmp_path) == sorted({8, 9, min(losses, key=lambda step: losses[step])})


def test_saves_by_steps_evaluations_and_time(data: Path, tmp_path: Path) -> None:
    keep = {"keep_last": 20}
    outcome(data, tmp_path / "steps", {**SHORT, **saving("4 steps", **keep)})
    assert steps_of(tmp_path / "steps") == [4, 8, 9]
    each_two = {"evaluation": {"every": "2 steps"}}
    outcome(data, tmp_path / "evaluations", {**SHORT, **each_two, **saving("2 evaluations", **keep)})
    assert steps_of(tmp_path / "evaluations") == [4, 8, 9]
    outcome(data, tmp_path / "minutes", {**SHORT, **saving("1e-9 minutes", **keep)})
    assert steps_of(tmp_path / "minutes") == list(range(1, 10))
    outcome(data, tmp_path / "hours", {**SHORT, **saving("600 minutes", **keep)})
    assert steps_of(tmp_path / "hours") == [9]


def test_what_a_killed_writer_left_is_ignored_and_removed(data: Path, tmp_path: Path) -> None:
    outcome(data, tmp_path, SHORT, stop_after=4)
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(checkpoints / "step-00000004", checkpoints / "step-00000007")
    (checkpoints / "step-00000007" / "manifest.json").rename(checkpoints / "step-00000007" / "manifest.json.draft")
    found = outcome(data, tmp_path, SHORT)
    assert found.result.resumed_from == 4
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000004", "step-00000009"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(data: Path, tmp_path: Path, damage: str) -> None:
    changes = {**SHORT, **saving("3 steps", keep_last=5)}
    whole = outcome(data, tmp_path, changes, stop_after=6)
    folder = tmp_path / "checkpoints" / "step-00000006"
    part = folder / "rank-00000.safetensors"
    content = part.read_bytes()
    match damage:
        case "flipped":
            part.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
        case "cut":
            part.write_bytes(content[:-100])
        case "missing":
            part.unlink()
        case "manifest":
            (folder / "manifest.json").write_text("{")
    again = outcome(data, tmp_path, changes)
    assert again.result.resumed_from == 3
    assert f"checkpoint {folder} is damaged and passed over" in again.events
    assert {step: again.losses[step] for step in (4, 5, 6)} == {step: whole.losses[step] for step in (4, 5, 6)}
    assert steps_of(tmp_path) == [3, 6, 9]


def test_training_does_not_start_anew_over_checkpoints_that_are_all_damaged(data: Path, tmp_path: Path) -> None:
    outcome(data, tmp_path, SHORT, stop_after=2)
    part = tmp_path / "checkpoints" / "step-00000002" / "rank-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"every checkpoint is damaged: .*step-00000002"):
        outcome(data, tmp_path, SHORT)
    assert steps_of(tmp_path) == [2]


def test_a_broken_manifest_does_not_end_a_run(data: Path, tmp_path: Path) -> None:
    """Retention reads all manifests when a checkpoint is saved."""
    outcome(data, tmp_path, SHORT, stop_after=4)
    broken = tmp_path / "checkpoints" / "step-00000002"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    assert outcome(data, tmp_path, SHORT).result.step == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (ADATAMW, "written with adamw, this run has adatamw"),
        (SGD, "written with adamw, this run has sgd"),
        ({"model": {"config": {**LLAMA, "intermediate_size": 64}}}, "elements here, but"),
        (
            {"model": {"config": {**LLAMA, "num_hidden_layers": 1}}},
            "the model has no parameter network.model.layers",
        ),
        ({"model": {"config": {**LLAMA, "tie_word_embeddings": False}}}, "the checkpoint has no parameter network.lm_"),
    ],
    ids=["adatamw", "sgd", "narrower", "shallower", "untied"],
)
def test_another_model_or_optimizer_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    outcome(data, tmp_path, SHORT, stop_after=2)
    with pytest.raises(DataError, match="step-00000002 cannot be resumed") as raised:
        outcome(data, tmp_path, {**SHORT, **changes})
    assert message in str(raised.value)


def test_a_place_that_cannot_be_written_is_a_run_error(data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **saving("3 steps", keep_last=3)}
    outcome(data, tmp_path, changes, stop_after=3)
    (tmp_path / "checkpoints" / "step-00000006").write_text("in the way")
    with pytest.raises(RunError, match="step-00000006 could not be written: rank 0"):
        outcome(data, tmp_path, changes)
    assert steps_of(tmp_path) == [3]


def test_checkpoints_in_a_remote_file_system(data: Path) -> None:
    """Any fsspec file system; the parts are copied there and back."""

    def run(stop_after: int | None = None) -> tuple[Any, Recorder]:
        recorder = Recorder(stop_after)
        result = fit(
            config(data, **{**SHORT, **saving("3 steps")}),
            world=World.current(torch.device("cpu")),
            monitor=recorder,
            places=Places("memory://bucket/run/checkpoints", None),
            card=lambda _: "",
            metadata={},
        )
        return result, recorder

    first, before = run(stop_after=5)
    second, after = run()
    assert first.checkpoint.endswith("bucket/run/checkpoints/step-00000005")
    assert second.resumed_from == 5
    assert before.values["train/loss"].keys() | after.values["train/loss"].keys() == set(range(1, 10))


@pytest.mark.parametrize("micro_batch", [1, 4, 8])
def test_accumulation_counts_tokens_not_micro_batches(tmp_path: Path, micro_batch: int) -> None:
    """Rows with 1 to 30 targets: a mean of means would weigh them wrongly."""
    uneven = prepared(tmp_path / "data", targets=(1, 30))
    # SGD: its weights are sums of gradients, not of their signs.
    changes = {**SHORT, "optimizer": {"name": "sgd", "lr": 0.1}}
    expected = outcome(uneven, tmp_path / "two", changes)
    found = outcome(uneven, tmp_path / "cut", {**changes, **batch(micro_batch)})
    assert worst_loss(found.losses, expected.losses) < 1e-6
    assert found.values["train/grad_norm"] == pytest.approx(expected.values["train/grad_norm"], rel=1e-5)
    trained, reference = weights(tmp_path / "cut", 9), weights(tmp_path / "two", 9)
    assert all(torch.allclose(trained[name], reference[name], atol=1e-6) for name in reference)


def test_a_global_batch_that_cannot_be_cut_is_a_recipe_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"batch.global_sequences \(8\) must be a multiple"):
        outcome(data, tmp_path, {**SHORT, **batch(3)})
