"""CrossSplit beside plain cross-entropy where many training labels are wrong, on scikit-learn's digits.

    python benchmarks/noisy_labels.py

Trains recipes/digits-noisy-cross-split.yaml, and the same recipe without cross_split for as long, with several seeds;
the wrong labels are other ones with each seed.  Each epoch is evaluated on held-out images, whose labels are right:
`best` is the best epoch's accuracy, chosen on these very images, `last` the last one's.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from common import ROOT, circumstances
from rich.console import Console
from rich.table import Table

from lowland.trainers.fit import Places, fit
from lowland.trainers.monitor import SilentMonitor
from lowland.trainers.recipe import ImageClassificationConfig
from lowland.trainers.world import World

RECIPE = ROOT / "recipes" / "digits-noisy-cross-split.yaml"


class Accuracies(SilentMonitor):
    """Keeps what each evaluation said."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Keeps the metrics."""
        for name, value in values.items():
            self.found.setdefault(name, []).append(value)


def recipe(arm: str, seed: int, rate: float, changes: dict[str, Any]) -> ImageClassificationConfig:
    """A training."""
    sections = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    sections = {name: value for name, value in sections.items() if name in ImageClassificationConfig.model_fields}
    noise, split = sections["methods"]
    noise = {**noise, "rate": rate, "seed": seed}
    own = {
        "data": {**sections["data"], "held_out": 0.3},
        "evaluation": {"every": "1 epochs", "pictures": False},
        "checkpoints": {"every": None, "export": False},
        "methods": [noise, split] if arm == "cross_split" else [noise],
        "seed": seed,
    }
    return ImageClassificationConfig.model_validate({**sections, **own, **changes})


def trained(config: ImageClassificationConfig) -> tuple[dict[str, list[float]], float]:
    """What a training's evaluations said, and its seconds."""
    monitor, start = Accuracies(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            config,
            world=World.current(torch.device("cpu")),
            monitor=monitor,
            places=Places(str(Path(folder) / "checkpoints"), None),
            card=lambda metrics: "",
            metadata={},
        )
    return monitor.found, time.monotonic() - start


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5], help="parts of the labels that are wrong")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--length", help="of each training, if not the recipe's, for example '12 epochs'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = {"length": options.length} if options.length else {}
    table = Table("wrong labels", "training", "best", "last", "last, each network alone", "seconds")
    for rate in options.rates:
        for arm in ("cross-entropy", "cross_split"):
            runs = [trained(recipe(arm, seed, rate, changes)) for seed in range(options.seeds)]
            table.add_row(f"{rate:.0%}", arm, *row([found for found, _ in runs]), f"{_mean([s for _, s in runs]):.0f}")
    Console(width=140).print(table)
    print(circumstances("cpu", 1))


def row(runs: list[dict[str, list[float]]]) -> tuple[str, str, str]:
    """Accuracies of the seeds and their mean."""
    best, last = ([choose(run["eval/accuracy"]) for run in runs] for choose in (max, lambda values: values[-1]))
    names = [name for name in runs[0] if name.endswith("_network_accuracy")]
    alone = ", ".join(f"{_mean([run[name][-1] for run in runs]):.3f}" for name in names)
    return _shown(best), _shown(last), alone


def _shown(values: list[float]) -> str:
    return f"{_mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


if __name__ == "__main__":
    main()
