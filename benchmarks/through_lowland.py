"""A variant trained by lowland itself: recipe, Ray Train, DeepSpeed, MLflow; and what the run recorded.

python benchmarks/through_lowland.py RECIPE.yaml     (started by the benchmarks)
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from baselines import BETAS, CLIP, DECAY, RATE, sharding_fields
from common import Measurement, Variant, Workload, middle

from lowland.platform.runs import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ADAMW = {"name": "adamw", "lr": RATE, "betas": list(BETAS), "weight_decay": DECAY}
_MUON = {"name": "muon", "lr": RATE, "weight_decay": DECAY}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": _ADAMW,
    "adatamw": {**_ADAMW, "name": "adatamw"},
    "sam": {**_ADAMW, "sam": {"rho": 0.05}},
    "lookbehind-2": {**_ADAMW, "lookbehind": {"k": 2, "rho": 0.05}},
    "muon": {
        "name": "mixed",
        "lr": RATE,
        "rules": [{"kinds": ["matrices"], "optimizer": _MUON}, {"match": "*", "optimizer": _ADAMW}],
    },
}
PHASES = ("data", "forward_backward", "optimizer", "logging")


def write_recipe(workload: Workload, variant: Variant, name: str) -> Path:
    """The variant as a recipe file."""
    folder = Path(workload.folder)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe(workload, variant, name), sort_keys=False), encoding="utf-8")
    return path


def recipe(workload: Workload, variant: Variant, name: str) -> dict[str, Any]:
    """The variant's recipe; it evaluates on one sequence per worker and exports nothing."""
    folder, on_gpus = Path(workload.folder), workload.device == "cuda"
    return {
        "task": "causal-lm",
        "name": name,
        "storage": str(folder / "runs"),
        "length": f"{workload.steps} steps",
        "model": {
            "config": {"model_type": "llama", **workload.model},
            "dtype": workload.dtype,
            "gradient_checkpointing": "always" if variant.recompute else "never",
            "compile": variant.compile,
            "fused_loss": "always" if variant.fused_loss else "never",
        },
        "data": {"path": str(folder / "data")},
        "optimizer": OPTIMIZERS[variant.optimizer],
        "batch": {"micro_batch": variant.micro_batch, "max_grad_norm": CLIP},
        "sharding": sharding_fields(variant),
        "scaling": {
            "workers": workload.workers,
            "gpus_per_worker": int(on_gpus),
            "cpus_per_worker": workload.threads,
            "max_failures": 0,
        },
        "evaluation": {"every": None, "max_sequences": workload.workers, "micro_batch": 1},
        "checkpoints": {"every": None, "keep_best": 0, "export": False},
        "tracking": {
            "uri": f"sqlite:///{folder / 'mlflow.db'}",
            "flush_seconds": 0.5,
            "system_metrics": workload.system_metrics,
        },
        "log_every": workload.window,
    }


@dataclass
class Recorded:
    """What a run has recorded so far; for looking on while it trains."""

    workload: Workload
    name: str

    def finished(self) -> bool:
        """Whether the last step's metrics have arrived; evaluation and checkpoint come after them."""
        return self.workload.steps in self.history("perf/tokens_per_second")

    def measurement(self) -> Measurement:
        """What the readings after the warm-up say."""
        readings = self.workload.measured(self.history("perf/tokens_per_second"))
        phases = {phase: self.history(f"perf/{phase}_seconds") for phase in PHASES}
        split = {name: middle(self.workload.measured(values)) for name, values in phases.items() if values}
        memory = self.history("perf/gpu_memory_gib").values()
        return Measurement(middle(readings), readings, split, max(memory, default=None))

    def startup(self) -> dict[str, float]:
        """Seconds of each phase of the start-up."""
        if self.run_id is None:
            return {}
        metrics: Mapping[str, float] = self._client.get_run(self.run_id).data.metrics
        return {
            key.removeprefix("startup/").removesuffix("_seconds"): value
            for key, value in metrics.items()
            if key.startswith("startup/")
        }

    def history(self, metric: str) -> dict[int, float]:
        """A metric by step; empty before the run is in MLflow."""
        if self.run_id is None:
            return {}
        return {point.step: point.value for point in self._client.get_metric_history(self.run_id, metric)}

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow, once the run's own process has made the store."""
        record = RunFolder.open(str(Path(self.workload.folder, "runs")), self.name).read()
        return record.mlflow_run_id if record is not None else None

    @cached_property
    def _client(self) -> "MlflowClient":
        from lowland.platform.tracking.store import connect

        return connect(f"sqlite:///{Path(self.workload.folder, 'mlflow.db')}")


def main(path: str) -> int:
    """`lowland train RECIPE.yaml --resume never`, which needs no command line here."""
    from rich.console import Console

    from lowland.platform.launch import train
    from lowland.platform.recipe import load_recipe

    return train(load_recipe(path), resume="never", address=None, console=Console(soft_wrap=True)).exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
