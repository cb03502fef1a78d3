"""Accuracy of the worst group, or of rare classes: plain training beside the methods that are meant for it.

    python benchmarks/worst_group.py

Trains recipes/spurious-*.yaml and, on digits with a long tail, plain training and weight balancing, each with
several seeds in this process.  A seed fixes initial weights, order and augmentation; the images are the same for all.
Intervals are 95 % by Student's t; differences to plain training are over pairs of the same seed.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from common import ROOT, circumstances
from rich.console import Console
from rich.table import Table

from lowland.platform.comparison.statistics import interval, paired
from lowland.trainers.fit import Places, fit
from lowland.trainers.monitor import SilentMonitor
from lowland.trainers.recipe import ImageClassificationConfig
from lowland.trainers.world import World

Metrics = dict[str, float]
Runs = dict[str, dict[int, Metrics]]
"""By method and seed."""

SPURIOUS = {
    "plain": "spurious-plain",
    "spectral_decoupling": "spurious-spectral-decoupling",
    "cobalt": "spurious-cobalt",
}
OF_GROUPS = ("worst_group_accuracy", "accuracy")
OF_CLASSES = ("mean_class_accuracy", "worst_class_accuracy", "accuracy")


def recipe(name: str, changes: Mapping[str, Any]) -> ImageClassificationConfig:
    """A shipped recipe, evaluated at its end alone; `changes` replace whole sections."""
    sections = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    quiet = {"evaluation": {"every": None, "pictures": False}, "checkpoints": {"every": None}}
    return ImageClassificationConfig.model_validate({**_without_name(sections), **quiet, **changes})


def _without_name(sections: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sections.items() if key != "name"}


def trained(config: ImageClassificationConfig, folder: Path) -> Metrics:
    """The last metrics of a training, whose model is left in the folder."""
    result = fit(
        config,
        world=World.current(torch.device("cpu")),
        monitor=SilentMonitor(),
        places=Places(str(folder / "checkpoints"), folder / "model"),
        card=lambda metrics: "",
        metadata={},
    )
    return result.metrics


def spurious(seed: int, changes: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Metrics]:
    """Methods on birds whose ground goes with them."""
    found = {}
    for method, name in ((method, SPURIOUS[method]) for method in methods):
        with tempfile.TemporaryDirectory() as folder:
            found[method] = trained(recipe(name, {**changes, "seed": seed}), Path(folder))
    return found


def long_tailed(seed: int, changes: Mapping[str, Any], _: Sequence[str]) -> dict[str, Metrics]:
    """Plain training, the shipped recipe, and the two trainings of weight balancing."""
    name = "digits-long-tail"
    plain = {**changes, "methods": [], "seed": seed}
    usual = {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4, "nesterov": True}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        found["plain"] = trained(recipe(name, {**plain, "optimizer": usual}), Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        found["weight_balancing, one training"] = trained(recipe(name, {**changes, "seed": seed}), Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        found["more weight decay"] = trained(recipe(name, plain), Path(folder) / "first")
        second = {
            "length": "10 epochs",
            "model": {"path": str(Path(folder) / "first" / "model")},
            "optimizer": {"name": "sgd", "lr": 0.01, "weight_decay": 0.1, "nesterov": True},
            "methods": [{"name": "weight_balancing", "beta": 0.99, "max_norm_share": 0.1, "train": "classifier"}],
        }
        balanced = trained(recipe(name, {**plain, **second}), Path(folder) / "second")
        found["weight_balancing, second training"] = balanced
    return found


def table(title: str, runs: Runs, metrics: tuple[str, ...]) -> Table:
    """Means over seeds with intervals, and differences of the first metric to plain training."""
    made = Table("method", *(name.replace("_", " ") for name in metrics), f"{metrics[0]} - plain", title=title)
    values = {
        method: {name: {seed: found[f"eval/{name}"] for seed, found in seeds.items()} for name in metrics}
        for method, seeds in runs.items()
    }
    for method, named in values.items():
        first, base = named[metrics[0]], values["plain"][metrics[0]]
        difference = "" if method == "plain" else str(paired(first, base))
        made.add_row(method, *(str(interval(list(named[name].values()))) for name in metrics), difference)
    return made


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", default="spurious,long-tail")
    parser.add_argument("--methods", default=",".join(SPURIOUS), help="of spurious, plain among them")
    parser.add_argument("--length", help="of each training, instead of the recipe's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = {"length": options.length} if options.length else {}
    tasks = {"spurious": (spurious, OF_GROUPS), "long-tail": (long_tailed, OF_CLASSES)}
    for name in options.tasks.split(","):
        train, metrics = tasks[name]
        runs: Runs = {}
        for seed in range(1, options.seeds + 1):
            for method, found in train(seed, changes, options.methods.split(",")).items():
                runs.setdefault(method, {})[seed] = found
                shown = ", ".join(f"{metric} {found[f'eval/{metric}']:.4f}" for metric in metrics)
                print(f"{name}, {method}, seed {seed}: {shown}", flush=True)
        Console(width=140).print(table(f"{name}, {options.seeds} seeds", runs, metrics))
    print(circumstances("cpu", 1))


if __name__ == "__main__":
    main()
