"""A vision transformer of which OPTIN leaves a share of the multiplications, without retraining, beside other choices.

    python benchmarks/optin_shares.py

Trains a small one on scikit-learn's digits, once for each seed, and takes out heads and neurons by three scores: what
OPTIN says of 32 training images, the norms of a unit's weights, and chance.  The budget is spent alike.
"""

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch
from common import circumstances
from pruned_export import trained
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lowland.trainers.methods.elements import flags_of
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.trajectory import importance
from lowland.trainers.methods.transformer_units import TransformerUnits
from lowland.trainers.models import ImageClassifierLoss
from lowland.trainers.models.units import Units, without_units
from lowland.trainers.recipe import ImageClassificationConfig
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
VIT: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": 2,
}


def recipe(seed: int, epochs: int) -> ImageClassificationConfig:
    """The training."""
    return ImageClassificationConfig.model_validate(
        {
            "task": "image-classification",
            "length": f"{epochs} epochs",
            "model": {"config": VIT},
            "data": {"path": "digits", "channels": 1},
            "augmentation": {"padding": 1},
            "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
            "schedule": {"name": "cosine", "warmup": "10%", "final": 0},
            "batch": {"micro_batch": 64, "max_grad_norm": 1.0},
            "sharding": {"engine": "torch"},
            "evaluation": {"every": None},
            "checkpoints": {"every": None},
            "seed": seed,
        }
    )


def main() -> None:
    """Trains, prunes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    accuracies: dict[tuple[str, float], list[float]] = {}
    for seed in range(options.seeds):
        one_seed(recipe(seed, options.epochs), accuracies)
    table = Table("score", "1", *(f"{share:g}" for share in SHARES))
    for name in ("optin", "norms", "chance"):
        found = [_shown(accuracies[name, share]) for share in SHARES]
        table.add_row(name, _shown(accuracies["whole", 1.0]), *found)
    Console(width=160).print(table)
    print(circumstances("cpu", 1))


def one_seed(config: ImageClassificationConfig, accuracies: dict[tuple[str, float], list[float]]) -> None:
    """Trains a network and adds the accuracies of what is left of it."""
    network, metrics = trained(config)
    task = build_task(config, World.current(torch.device("cpu")))
    train, held_out = task.data.train, task.data.held_out
    images = train.pixels(np.random.default_rng(config.seed).choice(len(train), 32, replace=False))
    loss = ImageClassifierLoss(network, task.seen)
    accuracies.setdefault(("whole", 1.0), []).append(metrics["eval/accuracy"])
    units = TransformerUnits(network, Multiplications(network, (1, 8, 8)))
    begun = time.perf_counter()
    effects = units.effects(loss.logits, loss.normalised(images), seed=config.seed)
    print(f"seed {config.seed}: {len(effects)} units scored in {time.perf_counter() - begun:.1f} s", flush=True)
    chance = torch.rand(len(effects), dtype=torch.float64, generator=torch.Generator().manual_seed(config.seed))
    scores = {"optin": importance(effects, 10.0), "norms": norms(network, units.all), "chance": chance}
    for name, score in scores.items():
        for share in SHARES:
            kept = flags_of(units.all, units.within(score, share))
            smaller = ImageClassifierLoss(without_units(copy.deepcopy(network), kept), task.seen)
            with torch.no_grad():
                logits = smaller.logits(smaller.normalised(held_out.pixels(np.arange(len(held_out)))))
            right = (logits.argmax(1) == torch.from_numpy(held_out.labels)).double().mean()
            accuracies.setdefault((name, share), []).append(float(right))


def norms(network: nn.Module, units: list[Units]) -> Tensor:
    """By unit, the norm of the weights that go with it, heads' per channel so that neurons compare."""
    weights = network.state_dict()
    found = []
    for one in units:
        squares = torch.zeros(one.count, dtype=torch.float64)
        for name, dimension in one.tensors().items():
            if name in weights:
                squares += weights[name].double().square().movedim(dimension, 0).reshape(one.count, -1).sum(1)
        found.append(squares.view(-1, one.width).mean(1).sqrt())
    return torch.cat(found)


def _shown(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
