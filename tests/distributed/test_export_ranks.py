"""Every ZeRO stage exports the same model, which transformers loads."""

from pathlib import Path

import pytest
import torch
from support.full import full
from support.processes import Ranks
from support.training import export, weights, zero
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("dtype", "stage"),
    [
        ("float32", 2),
        ("float32", 3),
        ("bfloat16", 1),
        ("bfloat16", 3),
        full("float32", 0),
        full("float32", 1),
        full("bfloat16", 0),
        full("bfloat16", 2),
    ],
)
def test_exported_weights_are_the_trained_ones(two: Ranks, stage: int, dtype: str, data: Path, tmp_path: Path) -> None:
    found = two(export, data, tmp_path, zero(stage), dtype)[0]
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert network.dtype == getattr(torch, dtype)
    trained = weights(tmp_path, found.result.step)
    loaded = {f"network.{name}": parameter for name, parameter in network.named_parameters()}
    assert loaded.keys() == trained.keys()
    for name, parameter in loaded.items():
        assert torch.equal(parameter.detach().reshape(-1), trained[name].to(parameter.dtype)), name
