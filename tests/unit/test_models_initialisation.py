"""Initial weights of another scale or rank."""

from pathlib import Path

import pytest
import torch
from support.corpus import prepared
from support.training import LLAMA, config, initial_weights
from torch import nn

from lowland.trainers.measures import effective_rank
from lowland.trainers.models import reshape_initial_weights
from lowland.trainers.recipe import LanguageModelConfig


def test_rank_falls_and_the_norm_stays():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 6))
    before = [p.detach().clone() for p in network.parameters()]
    reshape_initial_weights(network, scale=1, rank=2)
    for weight, old in zip(network.parameters(), before, strict=True):
        if weight.dim() == 1:
            assert torch.equal(weight, old)
            continue
        assert torch.linalg.matrix_rank(weight.reshape(len(weight), -1), rtol=1e-5) == 2
        assert effective_rank(weight) <= 2 + 1e-3
        assert float(weight.detach().norm()) == pytest.approx(float(old.norm()))


def test_a_recipe_scales_matrices_alone(tmp_path: Path):
    data = prepared(tmp_path / "data")
    plain = initial_weights(config(data))
    unchanged = initial_weights(config(data, model={"config": LLAMA, "init_scale": 1.0, "init_rank": 36}))
    tripled = initial_weights(config(data, model={"config": LLAMA, "init_scale": 3.0}))
    for name, weight in plain.items():
        assert torch.equal(unchanged[name], weight)
        assert torch.equal(tripled[name], weight if "norm" in name else 3 * weight)


def test_loaded_weights_are_left_alone():
    with pytest.raises(ValueError, match="are for a model built"):
        LanguageModelConfig(path="somewhere", init_scale=2.0)
