"""A trial of the stock side: a plain function of Ray Tune's, which trains as lowland's workers do."""

import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from ray import tune

from lowland.platform.recipe import read_recipe
from lowland.platform.search.space import BoundSpace
from lowland.search_spaces import Space
from lowland.trainers.errors import NonFiniteError
from lowland.trainers.fit import Places, fit
from lowland.trainers.monitor import SilentMonitor
from lowland.trainers.world import World

DIVERGED = 1e3
"""What is reported instead of a loss that is not finite: worse than any loss."""


class Reports(SilentMonitor):
    """Reports each evaluation to Tune, which may end the training there."""

    epoch = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Reports what an evaluation gave; other metrics are of no use to the search."""
        if "eval/loss" in values:
            accuracy = {"accuracy": values["eval/accuracy"]} if "eval/accuracy" in values else {}
            self.report(values["eval/loss"], accuracy)

    def report(self, loss: float, more: Mapping[str, float]) -> None:
        """One more epoch."""
        self.epoch += 1
        tune.report({"loss": loss, "epoch": self.epoch, "at": time.time(), **more})


def train(config: dict[str, Any], *, recipe: dict[str, Any], space: dict[str, Any]) -> None:
    """Trains whole, unless Tune ends it at a report.

    Args:
        config: the parameters.
        recipe: what they change.
        space: which fields they drive.
    """
    base = read_recipe(recipe)
    torch.set_num_threads(int(base.scaling.cpus_per_worker))
    device = torch.device("cuda" if base.scaling.gpus_per_worker else "cpu")
    monitor = Reports()
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(
                BoundSpace(Space.model_validate(space), base).apply(config),
                world=World.current(device),
                monitor=monitor,
                places=Places(folder, None),
                card=lambda metrics: "",
                metadata={},
            )
        except NonFiniteError:
            monitor.report(DIVERGED, {})
