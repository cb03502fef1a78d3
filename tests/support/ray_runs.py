"""Runs of a small Llama on Ray, and what they left."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from support.training import LLAMA
from support.training import train as train_here

from lowland.platform.launch import Outcome, train
from lowland.platform.recipe import CausalLMRecipe
from lowland.platform.runs import RunFolder, RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

STEPS = 200
"""Steps of milliseconds: enough that a process can be killed in between."""


def fields(text: Path, storage: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A recipe of two workers at ZeRO-2 as a mapping; `changes` replace whole sections."""
    return {
        "name": name,
        "storage": str(storage),
        "length": f"{STEPS} steps",
        "model": {"config": LLAMA},
        "data": {"path": str(text)},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "cosine", "warmup": "10%"},
        "batch": {"micro_batch": 2, "global_sequences": 8},
        "sharding": {"stage": 2},
        "scaling": {"workers": 2},
        "evaluation": {"every": "50 steps"},
        "checkpoints": {"every": "20 steps"},
        "log_every": 1,
        "seed": 3,
    } | changes


def recipe(text: Path, storage: Path, name: str, **changes: Any) -> CausalLMRecipe:
    """The same as a recipe."""
    return CausalLMRecipe.model_validate(fields(text, storage, name, **changes))


@dataclass(frozen=True)
class Run:
    """A run that ended without an error."""

    outcome: Outcome
    output: str
    """What the user saw."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.outcome.folder)


def run(recipe: CausalLMRecipe, resume: str = "never", console: Console | None = None) -> Run:
    """Trains on the cluster of this process."""
    console = console or screen()
    outcome = train(recipe, resume=resume, address=None, console=console)
    return Run(outcome, written(console))


def screen() -> Console:
    """A console whose text `written` gives."""
    return Console(file=io.StringIO(), highlight=False, soft_wrap=True, width=200)


def written(console: Console) -> str:
    """What a `screen()` shows."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def record(storage: Path, name: str) -> RunRecord:
    """The record of a run that exists."""
    found = RunFolder.open(str(storage), name).read()
    assert found is not None
    return found


def client(storage: Path) -> "MlflowClient":
    """The store that runs of this storage use."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{storage}/mlflow.db")


def history(storage: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    """Steps and values of a metric as MLflow holds them, by step; a step twice is there twice."""
    return sorted((metric.step, metric.value) for metric in client(storage).get_metric_history(run_id, key))


def environment(**more: str) -> dict[str, str]:
    """The environment of a command that starts a cluster of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return {**kept, **more}


def losses_here(sections: dict[str, Any], folder: Path) -> dict[int, float]:
    """Training losses by step without Ray, told on rank 0; called on every rank."""
    _, recorder = train_here(CausalLMRecipe.model_validate(sections), folder)
    return recorder.values.get("train/loss", {})
