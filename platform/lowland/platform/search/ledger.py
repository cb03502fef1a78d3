"""What a search has spent, from what is kept with its trials; and the budget that ends it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lowland.platform.search.jobs import Job, Outcome
from lowland.platform.search.trials import Segment
from lowland.trainers.errors import UserError

Unit = Literal["gpu-hours", "cpu-hours", "epochs", "seconds", "tokens", "trainings"]
SEGMENTS = "segments"
"""Name of the note of a trial that holds its segments' accounts."""


def account(segment: Segment, job: Job, outcome: Outcome, full: int) -> dict[str, float]:
    """What a segment took; `step`, `tokens`, `epochs` and `training` (seconds) are the trial's so far."""
    result, metrics = outcome.result, outcome.result.get("metrics", {})
    return {
        "seconds": outcome.seconds,
        "cpus": job.resources.cpus,
        "gpus": job.resources.gpus,
        "startup": result.get("startup") or 0.0,
        "attempts": outcome.attempts,
        "training": result.get("seconds", 0.0),
        "step": result.get("step", 0),
        "tokens": metrics.get("train/tokens", 0.0),
        "epochs": metrics.get("train/epoch", 0.0),
        "trainings": segment.end / full if outcome.end == "reached" else segment.start / full,
    }


@dataclass(frozen=True)
class Ledger:
    """Sums over all trials."""

    seconds: float
    """In which workers had a job; of groups side by side, all count."""
    gpu_seconds: float
    cpu_seconds: float
    tokens: float
    epochs: float
    trainings: float
    """Of whole length; parts count as parts."""
    steps: float
    goodput: float
    """Share of `seconds` in which steps were trained that counted: the rest is start-up, saving and retries."""
    startup_share: float
    """Share of `seconds` before a first step."""
    restarts: float
    """How often workers were lost with a job."""

    def metrics(self) -> dict[str, float]:
        """As metrics of the parent run."""
        return {f"search/{name}": float(value) for name, value in vars(self).items()}

    def spent(self, unit: Unit) -> float:
        """In a budget's unit."""
        match unit:
            case "gpu-hours":
                return self.gpu_seconds / 3600
            case "cpu-hours":
                return self.cpu_seconds / 3600
            case _:
                return float(getattr(self, unit))


def total(trials: Iterable[list[Mapping[str, Any]]]) -> Ledger:
    """The ledger of trials' accounts, each trial's in order."""
    held = [accounts for accounts in trials if accounts]
    every = [a for accounts in held for a in accounts]

    def reached(name: str) -> float:
        return float(sum(max(a[name] for a in accounts) for accounts in held))

    seconds = sum(a["seconds"] for a in every)
    return Ledger(
        seconds=seconds,
        gpu_seconds=sum(a["seconds"] * a["gpus"] for a in every),
        cpu_seconds=sum(a["seconds"] * a["cpus"] for a in every),
        tokens=reached("tokens"),
        epochs=reached("epochs"),
        trainings=reached("trainings"),
        steps=reached("step"),
        goodput=min(reached("training") / seconds, 1.0) if seconds else 0.0,
        startup_share=sum(a["startup"] for a in every) / seconds if seconds else 0.0,
        restarts=sum(max(a["attempts"] - 1, 0) for a in every),
    )


@dataclass(frozen=True)
class Budget:
    """How much a search may spend; the segments that run when it is spent still end."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads `40gpu-hours`, `300 epochs` and so on; `seconds` are those in which workers had a job.

        Raises:
            UserError: it is no positive number with a unit.
        """
        match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z-]+)\s*", text)
        if match is None or match[2] not in get_args(Unit) or float(match[1]) <= 0:
            units = ", ".join(get_args(Unit))
            raise UserError(f"--budget {text}: write a positive number and a unit ({units}), for example 40gpu-hours")
        return cls(float(match[1]), match[2])  # type: ignore[arg-type]
