"""Whole trainings of small classifiers in this process."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.training import states
from support.vision import (
    BATCH_NORM,
    EVERYTHING,
    WITHOUT_NORM,
    buffers,
    config,
    encoded,
    noise,
    train,
    train_and_watch,
    write_parquet,
)

from lowland.trainers.errors import RecipeError
from lowland.trainers.models import load_classifier
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

GRAPHS = {"model": {"architecture": "resnet50", "compile": True, "cuda_graphs": True}, "batch": {"micro_batch": 8}}
SHORT = {"length": "6 steps", "evaluation": {"every": None, "pictures": False}}


def same(first, second, step):
    for name, parameters in states(first, step).items():
        assert parameters.keys() == states(second, step)[name].keys()
        for key, value in parameters.items():
            assert torch.equal(states(second, step)[name][key], value), (name, key)


@pytest.mark.parametrize("sam", [None, {"rho": 0.1}])
def test_a_resume_in_the_middle_is_an_uninterrupted_training_to_the_bit(tmp_path, sam):
    changes = {**SHORT, "optimizer": {"name": "sgd", "lr": 0.1, "sam": sam}}
    train(tmp_path / "whole", changes)
    assert train(tmp_path / "parts", changes, stop_after=3).result.interrupted
    assert train(tmp_path / "parts", changes).result.resumed_from == 3
    same(tmp_path / "parts", tmp_path / "whole", 6)
    assert len(buffers(tmp_path / "whole", 6)) == 3 * 7


def test_sams_passes_leave_running_averages_alone(tmp_path):
    """With rho 0 SAM is its base, to the bit; statistics of a second pass would show."""
    train(tmp_path / "plain", SHORT)
    train(tmp_path / "sam", {**SHORT, "optimizer": {"name": "sgd", "lr": 0.1, "sam": {"rho": 0.0}}})
    plain, sam = buffers(tmp_path / "plain", 6), buffers(tmp_path / "sam", 6)
    assert all(torch.equal(sam[name], value) for name, value in plain.items())
    tracked = [value for name, value in sam.items() if name.endswith("num_batches_tracked")]
    assert all(value == 6 for value in tracked)


def test_it_learns_and_leaves_model_pictures_and_counts(tmp_path):
    changes = {
        "length": "3 epochs",
        "augmentation": {"padding": 1},
        "batch": {"micro_batch": 64},
        "optimizer": {"name": "sgd", "lr": 0.2, "weight_decay": 5e-4, "nesterov": True},
        "schedule": {"name": "cosine", "warmup": "10%", "final": 0},
        "evaluation": {"every": None},
        "checkpoints": {"every": None, "export": True},
        "log_every": 25,
    }
    outcome, recorder = train_and_watch(tmp_path, changes, export=True)
    metrics = outcome.result.metrics
    assert metrics["eval/accuracy"] > 0.9
    assert metrics["perf/samples_per_second"] > 0
    assert "perf/tokens_per_second" not in metrics
    assert recorder.values["data/train_images"] == {0: 1617.0}
    assert sorted(recorder.files) == ["pictures/confusion.png", "pictures/mistakes.png"]
    network, seen = load_classifier(tmp_path / "model")
    task = build_task(config(**changes), World.current(torch.device("cpu")))
    pixels = task.data.held_out.pixels(np.arange(180))
    images = (pixels.float() / 255 - torch.tensor(seen.mean)) / torch.tensor(seen.std)
    with torch.no_grad():
        right = (network(images).argmax(1).numpy() == task.data.held_out.labels).mean()
    assert right == metrics["eval/accuracy"], "weights and running averages are the trained ones"
    held = buffers(tmp_path, outcome.result.step)
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(exported[name.removeprefix("network.")], value) for name, value in held.items())


def test_what_is_left_out_is_told_and_named_in_a_file(tmp_path):
    images = [encoded(noise(i, 8, 8)) for i in range(40)]
    labels: list[int | None] = [i % 10 for i in range(40)]
    images[3], labels[7] = b"broken", None
    path = write_parquet(tmp_path / "a.parquet", images, labels)
    data = {"path": str(path), "channels": 1, "bad_rows": "skip", "held_out": 0.2, "threads": 1}
    _, recorder = train_and_watch(tmp_path, {**SHORT, "length": "1 steps", "data": data})
    assert recorder.values["data/path/bad_rows"] == {0: 2.0}
    assert any("2 of 40 rows left out (1 corrupt image, 1 missing label)" in event for event in recorder.events)
    named = recorder.files["data/bad_rows.txt"].decode().splitlines()
    assert [line.split(": ")[0].rpartition("/")[2] for line in named] == ["a.parquet row 3", "a.parquet row 7"]


def test_groups_are_told_apart(tmp_path):
    images = [encoded(noise(i, 8, 8)) for i in range(40)]
    path = write_parquet(tmp_path / "a.parquet", images, [i % 3 for i in range(40)], side=["left", "right"] * 20)
    data = {"path": str(path), "channels": 1, "group_column": "side", "held_out": 0.5, "threads": 1}
    metrics = train(tmp_path, {**SHORT, "length": "1 steps", "data": data}).result.metrics
    groups = {name: value for name, value in metrics.items() if name.startswith("eval/group_accuracy/")}
    assert set(groups) == {"eval/group_accuracy/left", "eval/group_accuracy/right"}
    assert metrics["eval/worst_group_accuracy"] == min(groups.values())


@pytest.mark.parametrize("model", [BATCH_NORM, WITHOUT_NORM], ids=["batch norm", "without"])
def test_streamed_images_train_as_those_in_memory_do(tmp_path, model):
    """Images of the network's own size are the same bytes either way."""
    losses = []
    for cache in ("always", "never"):
        data = {"channels": 1, "cache": cache, "threads": 2, "mean": [0.3], "std": [0.4]}
        losses.append(train(tmp_path / cache, {**SHORT, **model, "data": data}).losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": {"micro_batch": 8, "global_images": 12}}, r"batch.global_images \(12\) must be a multiple"),
        (
            {"model": {**BATCH_NORM["model"], "batch_norm": "global"}},
            "model.batch_norm = global: a step of batch.global_images = 32 is 4 passes",
        ),
        ({"augmentation": {"padding": 9, "padding_mode": "reflect"}}, "an image of 8 pixels can be reflected by less"),
    ],
)
def test_what_only_the_data_or_the_workers_show(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        train(tmp_path, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": "1e6 tokens"}, "length: 1000000 tokens: images have no tokens"),
        ({"schedule": {"name": "wsd", "cooldown": "9 tokens"}}, "schedule.cooldown: 9 tokens: images have no tokens"),
        ({"batch": {"micro_batch": 8, "accumulation": 2, "global_images": 16}}, "both are given"),
        ({"augmentation": {"padding": 1, "resized_crop": {}}}, "padding and resized_crop exclude each other"),
        ({"augmentation": {"resized_crop": {"area": [0.5, 0.2]}}}, "the first must not be greater"),
        ({"augmentation": {"erasing": {"area": [0.5, 1.2]}}}, "area is a part of the image, at most 1"),
        ({"data": {"mean": [0.1]}}, "mean needs a number for each of 3 channels, 1 are given"),
        ({"model": {"architecture": "resnet50", "compile": True}, "sharding": {"stage": 3}}, "not at sharding.stage 3"),
        ({"model": {"architecture": "resnet50", "cuda_graphs": True}}, "cuda_graphs: true needs model.compile: true"),
        (GRAPHS | {"sharding": {"stage": 0}}, "cuda_graphs: true needs sharding.engine: torch"),
        (GRAPHS | {"batch": {"micro_batch": 2, "accumulation": 3}}, "one pass a step: remove batch.accumulation"),
        (GRAPHS | {"batch": {"micro_batch": 2, "global_images": 6}}, "one pass a step: remove batch.global_images"),
        (GRAPHS | {"measures": {"names": ["sharpness"]}}, "needs a training without measures"),
        (
            {"model": {**BATCH_NORM["model"], "batch_norm": "global"}, "batch": {"micro_batch": 2, "accumulation": 3}},
            "batch_norm: global needs all images of a step in one pass, but batch.accumulation is 3",
        ),
    ],
)
def test_recipes_that_contradict_themselves(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_everything_at_once_stays_finite(tmp_path):
    losses = train(tmp_path, {**SHORT, "augmentation": EVERYTHING, **WITHOUT_NORM}).losses
    assert all(np.isfinite(list(losses.values())))
