"""The shipped recipe that fine-tunes a vision transformer, on one that the test builds."""

from pathlib import Path

import pytest
import torch
from support.images import trained_weights, write_digits
from support.vision import train_config
from transformers import ViTConfig, ViTForImageClassification

from lowland.platform.recipe.document import read_document
from lowland.trainers.models import load_classifier
from lowland.trainers.recipe import ImageClassificationConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "cifar10-vit-finetune.yaml"


def test_rates_fall_with_each_block_towards_the_images(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 12}
    torch.manual_seed(0)
    pretrained = ViTForImageClassification(ViTConfig(**sizes, patch_size=4, image_size=8, num_channels=1, num_labels=5))
    pretrained.save_pretrained(tmp_path / "pretrained")
    sections = {
        **read_document(RECIPE).data,
        "length": "1 steps",
        "schedule": {"name": "constant"},
        "model": {"path": str(tmp_path / "pretrained")},
        "data": {"path": str(write_digits(tmp_path / "digits.parquet")), "size": 8, "channels": 1, "threads": 1},
        "batch": {"micro_batch": 24},
        "evaluation": {"every": None},
        "checkpoints": {"every": None},
    }
    recipe = ImageClassificationConfig.model_validate(
        {name: value for name, value in sections.items() if name in ImageClassificationConfig.model_fields}
    )
    train_config(recipe, tmp_path / "run", export=True)
    before = pretrained.state_dict()
    after = {name.removeprefix("network."): weight for name, weight in trained_weights(tmp_path / "run", 1).items()}
    moved = {
        name: float((after[name].flatten() - weight.flatten()).abs().max())
        for name, weight in before.items()
        if "classifier" not in name
    }
    blocks = [max(d for name, d in moved.items() if f".layers.{index}.mlp" in name) for index in range(12)]
    # AdamW's first step is the rate, whatever the gradient.
    whole = moved["vit.layernorm.weight"]
    assert whole > 0
    assert blocks == pytest.approx([whole * 0.75 ** (12 - index) for index in range(12)], rel=1e-2)
    for name in ("cls_token", "position_embeddings", "patch_embeddings.projection.bias"):
        assert moved[f"vit.embeddings.{name}"] == pytest.approx(whole * 0.75**13, rel=1e-2)
    network, seen = load_classifier(tmp_path / "run" / "model")
    assert network.classifier.out_features == len(seen.classes) == 3
