"""Measures and landscapes of an image classifier with BatchNorm."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import TORCH, Recorder, weights

from lowland.trainers.fit import Places, fit
from lowland.trainers.landscape import LoadedModel, interpolated, match_weights, permutation_spec, permuted
from lowland.trainers.recipe import ImageClassificationConfig
from lowland.trainers.world import World

NAMES = ["sharpness", "top_eigenvalue", "effective_rank", "weight_movement", "representation", "ntk"]


def digits(**changes: Any) -> ImageClassificationConfig:
    sections: dict[str, Any] = {
        "task": "image-classification",
        "length": "24 steps",
        "model": {"architecture": "wide-resnet-10-1"},
        "data": {"channels": 1},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "batch": {"micro_batch": 32, "global_images": 64},
        "evaluation": {"every": None, "pictures": False},
        "checkpoints": {"every": None, "export": False},
        **TORCH,
    }
    return ImageClassificationConfig.model_validate({**sections, **changes})


def trained(folder: Path, **changes: Any) -> dict[str, dict[int, float]]:
    recorder = Recorder()
    places = Places(str(folder / "checkpoints"), None)
    world = World.current(torch.device("cpu"))
    fit(digits(**changes), world=world, monitor=recorder, places=places, card=lambda metrics: "", metadata={})
    return recorder.values


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, dict[str, dict[int, float]]]]:
    """Two seeds."""
    made = {seed: tmp_path_factory.mktemp("digits") for seed in (0, 1)}
    return {seed: (folder, trained(folder, seed=seed)) for seed, folder in made.items()}


def test_measures_leave_running_statistics_alone(runs: Any, tmp_path: Path) -> None:
    folder, plain = runs[0]
    found = trained(tmp_path, measures={"names": NAMES, "every": "12 steps", "iterations": 2, "examples": 4})
    assert found["train/loss"] == plain["train/loss"]
    assert found["eval/loss"] == plain["eval/loss"]
    for name, tensor in weights(folder, 24).items():
        assert torch.equal(weights(tmp_path, 24)[name], tensor)
    assert found["measure/ntk_alignment"][0] == pytest.approx(1)
    assert found["measure/weight_movement"][24] > 0.05


def test_statistics_follow_the_weights(runs: Any) -> None:
    models = {
        seed: LoadedModel(digits(seed=seed), f"{folder}/checkpoints", None, torch.device("cpu"))
        for seed, (folder, _) in runs.items()
    }
    one, two = models[0], models[1]
    spec = permutation_spec(one.module)
    assert spec is not None
    other = permuted(two.weights, spec, match_weights(spec, one.weights, two.weights))
    assert one.evaluate(other)["eval/loss"] == pytest.approx(runs[1][1]["eval/loss"][24], rel=1e-5)
    middle = interpolated(one.weights, other, 0.5)
    stale, fresh = (one.evaluate(middle, own_statistics=own)["eval/loss"] for own in (True, False))
    assert stale != pytest.approx(fresh, rel=0.01)
    # What came in between has changed nothing of what was read.
    assert one.evaluate(one.weights)["eval/loss"] == runs[0][1]["eval/loss"][24]
