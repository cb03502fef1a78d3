"""A compiled network whose kernels are CUDA graphs is trained as without them: on a GPU alone."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import Recorder, states
from support.vision import buffers, config

from lowland.trainers.fit import Places, fit
from lowland.trainers.world import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
STEPS = 8
CROSS_SPLIT = [
    {"name": "label_noise", "rate": 0.3},
    {
        "name": "cross_split",
        "warmup": "2 steps",
        "ramp": "1 steps",
        "gamma": [1.0],
        "gamma_until": [],
        "average": 0.5,
    },
]


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that do the same again, in full fp32: what is left is what graphs do."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.compiler.reset()


def train(folder: Path, changes: dict[str, Any], *, graphs: bool) -> dict[int, float]:
    """The losses of a short training in fp32 on the GPU, which leaves a checkpoint in the folder."""
    model = {"architecture": "wide-resnet-10-1", "compile": True, "cuda_graphs": graphs}
    sections = {
        "length": f"{STEPS} steps",
        "model": model,
        "batch": {"micro_batch": 32},
        "augmentation": {"flip": 0.5},
        "evaluation": {"every": "4 steps", "micro_batch": 40, "pictures": False},
        "optimizer": SGD,
    }
    recorder = Recorder(None)
    fit(
        config(**{**sections, **changes}),
        world=World.current(torch.device("cuda")),
        monitor=recorder,
        places=Places(str(folder / "checkpoints"), None),
        card=lambda metrics: "card",
        metadata={},
    )
    return recorder.values["train/loss"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {**SGD, "sam": {"rho": 0.05}}},
        {"optimizer": {**SGD, "lookbehind": {"rho": 0.05, "k": 2}}},
        {"optimizer": {"name": "adamw", "lr": 1e-3, "ema": {"half_life": "2 steps"}}},
        {"methods": CROSS_SPLIT},
        {
            "methods": [{"name": "vrex", "strength": 1.0}],
            "data": {"path": "shapes", "size": 16, "group_column": "group"},
        },
    ],
    ids=["sgd", "sam", "lookbehind", "ema", "cross_split", "vrex"],
)
def test_a_training_with_graphs_is_the_one_without(changes: dict[str, Any], tmp_path: Path) -> None:
    """To the bit."""
    plain, graphs = (train(tmp_path / str(on), changes, graphs=on) for on in (False, True))
    assert graphs == plain
    before, after = (states(tmp_path / str(on), STEPS) for on in (False, True))
    assert before
    for name, tensors in before.items():
        for key, tensor in tensors.items():
            assert torch.equal(after[name][key], tensor), (name, key)
    expected, averages = (buffers(tmp_path / str(on), STEPS) for on in (False, True))
    for key, tensor in expected.items():
        assert torch.equal(averages[key], tensor), key


def test_graphs_of_earlier_trainings_keep_no_memory(tmp_path: Path) -> None:
    held = []
    for turn in range(4):
        train(tmp_path / str(turn), {}, graphs=True)
        gc.collect()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert held[-1] <= 1.1 * held[0], held
