"""`train` on Ray: what a run leaves, that it is the training `fit` does, and how it fails."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import run_ranks
from support.ray_runs import STEPS, Run, client, fields, history, losses_here, recipe, record, screen, written
from support.training import weights

from lowland.platform.launch import train
from lowland.platform.recipe import CausalLMRecipe
from lowland.platform.recipe.dump import flatten
from lowland.trainers.data.manifest import Manifest
from lowland.trainers.data.order import Order
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.errors import RunError, UserError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

SHORT: dict[str, Any] = {"length": "12 steps", "checkpoints": {"every": "5 steps", "export": False}}


def test_the_outcome_and_the_record(whole: Run, storage: Path):
    outcome, held = whole.outcome, record(storage, "whole")
    assert (outcome.status, outcome.step, outcome.exit_code) == ("finished", STEPS, 0)
    assert (held.status, held.attempts, held.mlflow_run_id) == ("finished", 1, outcome.mlflow_run_id)
    assert outcome.metrics["eval/loss"] < 0.5 * history(storage, outcome.mlflow_run_id, "train/loss")[0][1]
    assert f"step {STEPS}/{STEPS} (100%)" in whole.output
    assert "restarting" not in whole.output


def test_mlflow_holds_every_field_metric_and_file(whole: Run, text: Path, storage: Path):
    run_id, store = whole.outcome.mlflow_run_id, client(storage)
    held = store.get_run(run_id)
    assert held.info.status == "FINISHED"
    assert held.data.params == {k: str(v) for k, v in flatten(recipe(text, storage, "whole")).items()}
    assert [step for step, _ in history(storage, run_id, "train/loss")] == list(range(1, STEPS + 1))
    evaluations = history(storage, run_id, "eval/loss")
    assert [step for step, _ in evaluations] == [50, 100, 150, 200]
    assert evaluations[-1][1] == whole.outcome.metrics["eval/loss"]
    for phase in ("ray", "worker", "data", "model", "engine", "first_step", "total"):
        assert [step for step, _ in history(storage, run_id, f"startup/{phase}_seconds")] == [1]
    assert any(key.startswith("system/") for key in held.data.metrics)
    (dataset,) = held.inputs.dataset_inputs
    assert dataset.dataset.digest == Manifest.read(text).digest[:36]
    tags = {"task": "causal-lm", "model": "llama", "optimizer": "adamw", "world_size": "2", "zero_stage": "2"}
    assert tags.items() <= held.data.tags.items()
    artifacts = {item.path for item in store.list_artifacts(run_id)}
    assert {"recipe.yaml", "environment"} <= artifacts
    (output,) = held.outputs.model_outputs
    assert store.get_logged_model(output.model_id).params["location"] == f"{whole.folder}/model"


def test_the_model_loads_and_is_what_was_trained(whole: Run):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(whole.folder / "model", dtype=torch.float32).state_dict()
    trained = weights(whole.folder, STEPS)
    assert len(trained) > 10
    for name, values in trained.items():
        assert torch.equal(loaded[name.removeprefix("network.")].reshape(-1), values)


def test_each_rank_has_its_output_in_the_run_folder(whole: Run):
    logs = {path.name for path in (whole.folder / "logs").iterdir() if path.is_file()}
    assert logs == {"attempt-1-rank-0.log", "attempt-1-rank-1.log"}
    assert not list((whole.folder / "logs").glob("undelivered/*")), "all metrics were delivered"


def test_it_is_the_training_that_plain_processes_do(whole: Run, text: Path, storage: Path, tmp_path: Path):
    here = run_ranks(2, losses_here, fields(text, storage, "plain"), tmp_path)[0]
    assert history(storage, whole.outcome.mlflow_run_id, "train/loss") == sorted(here.items())
    plain, on_ray = weights(tmp_path, STEPS), weights(whole.folder, STEPS)
    assert plain.keys() == on_ray.keys()
    assert all(torch.equal(plain[name], on_ray[name]) for name in plain)


def failed(changed: CausalLMRecipe, kind: type[Exception]) -> tuple[str, str]:
    """The message of the error that ends a run, and what the user saw before."""
    console = screen()
    with pytest.raises(kind) as caught:
        train(changed, resume="never", address=None, console=console)
    return str(caught.value), written(console)


def test_preflight_leaves_no_run(cluster: None, text: Path, storage: Path):
    message, _ = failed(recipe(text, storage, "refused", scaling={"workers": 9}), UserError)
    assert "pre-flight found 1 problem" in message
    assert not (storage / "refused").exists()


def test_what_the_user_can_correct_is_said_once_and_not_repeated(
    cluster: None, text: Path, storage: Path, tmp_path: Path
):
    broken = Path(shutil.copytree(text, tmp_path / "broken"))
    shard = broken / "train-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-10])
    message, output = failed(recipe(broken, storage, "broken", **SHORT), UserError)
    assert message.startswith(f"{shard}: not a readable shard")
    assert "Traceback" not in message + output
    assert "restarting" not in output
    assert (record(storage, "broken").status, record(storage, "broken").attempts) == ("failed", 1)
    assert client(storage).get_run(record(storage, "broken").mlflow_run_id or "").info.status == "FAILED"


def test_an_error_of_one_rank_alone_ends_all_of_them(cluster: None, text: Path, storage: Path, tmp_path: Path):
    """The other rank waits for it in a collective, where it would stay for minutes.

    That it comes to the fourth step shows, too, that failed runs before do not disturb the next one on their cluster.
    """
    broken = Path(shutil.copytree(text, tmp_path / "broken"))
    split = PackedSplit.open(broken, "train")
    # Rank 1's first row of the fourth step: sequences of a step go to the ranks in turns of a micro-batch.
    row = Order(len(split), 3).examples(3 * 8, 8).reshape(2, 2, 2)[0, 1, :1]
    tokens = split.tokens(row).astype(np.uint16)
    shard = broken / "train-00000.arrow"
    content = shard.read_bytes()
    assert content.count(tokens.tobytes()) == 1
    shard.write_bytes(content.replace(tokens.tobytes(), np.full_like(tokens, 999).tobytes()))
    changes = SHORT | {"checkpoints": {"every": "1 steps", "export": False}}
    message, output = failed(recipe(broken, storage, "one-rank", **changes), RunError)
    assert message.startswith("rank 1 failed: IndexError")
    assert "restarting" not in output
    log = Path(message.rpartition(" is in ")[2])
    assert "Traceback" in log.read_text()
    assert [step for step, _ in history(storage, record(storage, "one-rank").mlflow_run_id or "", "train/loss")] == [
        1,
        2,
        3,
    ]


def test_nothing_is_compiled_for_cpus(whole: Run):
    assert not Path(os.environ["TORCH_EXTENSIONS_DIR"]).exists()
