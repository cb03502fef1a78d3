"""Size, speed and accuracy of networks that were pruned while they trained, beside the plain one.

    python benchmarks/pruned_export.py

Trains a WideResNet on scikit-learn's digits: plain, with DemP and with magnitude pruning, of weights and of as many
units as DemP took out with the same seed.  Exports each, reads it back and times forward passes, the networks taking
turns; the fastest of each counts, since other processes can only slow one down.  Size, FLOPs and time are those of the
first seed.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import circumstances
from rich.console import Console
from rich.table import Table
from torch import nn

from lowland.trainers.fit import Places, fit
from lowland.trainers.models import load_classifier
from lowland.trainers.monitor import SilentMonitor
from lowland.trainers.recipe import ImageClassificationConfig
from lowland.trainers.world import World

ROWS = ("plain", "demp", "magnitude, weights", "magnitude, units")
"""What is trained, in this order."""
PRUNING = {"name": "magnitude_pruning", "sparsity": 0.8, "rounds": 3, "dense": "40%", "rewind": "learning_rate"}


def methods(row: str, options: argparse.Namespace, removed: float) -> list[dict[str, Any]]:
    """The recipe's `methods`; `removed` is the share of units that DemP took out."""
    if row == "plain":
        return []
    if row == "demp":
        return [{"name": "demp", "strength": options.strength, "noise": options.noise, "every": "2 epochs"}]
    if row == "magnitude, weights":
        return [PRUNING]
    return [{**PRUNING, "structure": "units", "scope": "tensor", "sparsity": removed}]


def recipe(chosen: list[dict[str, Any]], options: argparse.Namespace, seed: int) -> ImageClassificationConfig:
    """A training; the rate is that of recipes/digits-resnet.yaml."""
    return ImageClassificationConfig.model_validate(
        {
            "task": "image-classification",
            "length": f"{options.epochs} epochs",
            "model": {"architecture": options.architecture},
            "data": {"path": "digits", "channels": 1},
            "augmentation": {"padding": 1},
            "optimizer": {"name": "sgd", "lr": 0.2, "weight_decay": 5e-4, "nesterov": True},
            "schedule": {"name": "cosine", "warmup": "10%", "final": 0},
            "batch": {"micro_batch": 64},
            "sharding": {"engine": "torch"},
            "evaluation": {"every": None},
            "checkpoints": {"every": None},
            "methods": chosen,
            "seed": seed,
        }
    )


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="wide-resnet-10-1")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strength", type=float, default=0.02, help="of DemP's penalty")
    parser.add_argument("--noise", type=float, default=5e-5, help="of DemP")
    parser.add_argument("--rounds", type=int, default=60, help="of timing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[tuple[nn.Module, dict[str, float]]]] = {row: [] for row in ROWS}
    for seed in range(options.seeds):
        removed = 0.0
        for row in ROWS:
            found[row].append(trained(recipe(methods(row, options, removed), options, seed)))
            removed = found[row][-1][1].get("methods/demp/removed", removed)
    first = {name: networks[0][0] for name, networks in found.items()}
    times = fastest(first, options.rounds)
    dense = found["demp"][0][1]["methods/demp/flops"]
    table = Table("method", "accuracy", "units removed", "parameters", "zeros", "MFLOPs an image", "ms for 64 images")
    for name, networks in found.items():
        said = {key.split("/")[-1]: value for key, value in networks[0][1].items() if key.startswith("methods/")}
        accuracies = ", ".join(f"{metrics['eval/accuracy']:.3f}" for _, metrics in networks)
        weights = list(first[name].parameters())
        count, zeros = sum(p.numel() for p in weights), sum(int((p == 0).sum()) for p in weights)
        flops = said.get("smaller_flops", said.get("sparse_flops", dense))
        gone = f"{said['removed']:.0%}" if "removed" in said else ""
        shown = (gone, f"{count}", f"{zeros / count:.0%}", f"{flops / 1e6:.2f}", f"{times[name]:.2f}")
        table.add_row(name, accuracies, *shown)
    Console(width=120).print(table)
    print(circumstances("cpu", 1))


def trained(config: ImageClassificationConfig) -> tuple[nn.Module, dict[str, float]]:
    """The exported network, read back, and the last metrics of its training."""
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            config,
            world=World.current(torch.device("cpu")),
            monitor=SilentMonitor(),
            places=Places(str(Path(folder) / "checkpoints"), Path(folder) / "model"),
            card=lambda metrics: "",
            metadata={},
        )
        return load_classifier(Path(folder) / "model")[0], result.metrics


@torch.no_grad()
def fastest(networks: dict[str, nn.Module], rounds: int) -> dict[str, float]:
    """Milliseconds of the fastest forward pass of each."""
    images = torch.randn(64, 1, 8, 8)
    best = dict.fromkeys(networks, float("inf"))
    for _ in range(rounds):
        for name, network in networks.items():
            start = time.perf_counter()
            network(images)
            best[name] = min(best[name], 1000 * (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
