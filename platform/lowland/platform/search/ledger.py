"""What a search has spent, from what is kept with its trials; and the budget that ends it."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lowland.platform.search.jobs import Job, Outcome
from lowland.platform.search.trials import Segment
from lowland.trainers.errors import UserError

Unit = Literal["gpu-hours", "cpu-hours", "epochs", "seconds", "tokens", "trainings", "money"]
SEGMENTS = "segments"
"""Name of the note of a trial that holds its segments' accounts."""
TRAINED = ("training", "step", "tokens", "epochs", "trainings")
"""What of an account counts the whole trial so far."""


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
        "gpu_memory": metrics.get("perf/gpu_memory_gib", 0.0),
        "trainings": segment.end / full if outcome.end == "reached" else segment.start / full,
    }


def since(account: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """An account without what the trial's parent had trained when it was forked, which the parent's have."""
    return {**account, **{name: max(account[name] - before.get(name, 0.0), 0.0) for name in TRAINED}}


@dataclass(frozen=True)
class Ledger:
    """Sums over all trials."""

    seconds: float
    """In which workers had a job; of groups side by side, all count."""
    gpu_seconds: float
    cpu_seconds: float
    device_seconds: float
    """Of GPUs; of CPUs where a job held no GPU.  What is paid for."""
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

    def spent(self, budget: "Budget") -> float:
        """In a budget's unit."""
        match budget.unit:
            case "gpu-hours":
                return self.gpu_seconds / 3600
            case "cpu-hours":
                return self.cpu_seconds / 3600
            case "money":
                return budget.price.of(self.device_seconds) if budget.price is not None else 0.0
            case unit:
                return float(getattr(self, unit))

    def trainings_left(self, budget: "Budget") -> float:
        """How many whole trainings the rest of a budget is enough for, by what parts of them cost so far."""
        spent = self.spent(budget)
        return (budget.amount - spent) * self.trainings / spent if spent else math.inf


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
        device_seconds=sum(map(device_seconds, every)),
        tokens=reached("tokens"),
        epochs=reached("epochs"),
        trainings=reached("trainings"),
        steps=reached("step"),
        goodput=min(reached("training") / seconds, 1.0) if seconds else 0.0,
        startup_share=sum(a["startup"] for a in every) / seconds if seconds else 0.0,
        restarts=sum(max(a["attempts"] - 1, 0) for a in every),
    )


def device_seconds(account: Mapping[str, Any]) -> float:
    """GPU-seconds of a segment; CPU-seconds if it held no GPU."""
    return float(account["seconds"] * (account["gpus"] or account["cpus"]))


@dataclass(frozen=True)
class Price:
    """What an hour of a GPU costs; of a CPU where a training holds no GPU."""

    amount: float
    currency: str
    """As the user writes it; may be empty."""

    @classmethod
    def parse(cls, text: str) -> "Price":
        """Reads `2.5usd`, `2.5 EUR` or `2.5`.

        Raises:
            UserError: it is no positive number, with a currency or without.
        """
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]{0,8}|[$€£¥])\s*", text)
        if match is None or float(match[1]) <= 0:
            raise UserError(f"--price {text}: write a positive number and the currency, for example 2.5usd")
        return cls(float(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.amount:g} {self.currency}".rstrip()

    def of(self, seconds: float) -> float:
        """The price of so many device-seconds."""
        return self.amount * seconds / 3600

    def show(self, amount: float) -> str:
        """An amount, for people."""
        return f"{amount:.2f} {self.currency}".rstrip() if amount >= 0.1 else f"{amount:.2g} {self.currency}".rstrip()


def metrics_of(ledger: Ledger, price: Price | None, trials: int) -> dict[str, float]:
    """The ledger as metrics of the study's run, with the money spent and that for each of so many trials."""
    values = {name: float(value) for name, value in vars(ledger).items()}
    if price is not None:
        values["money"] = price.of(ledger.device_seconds)
        values["money_per_trial"] = values["money"] / max(trials, 1)
    return {f"search/{name}": value for name, value in values.items()}


@dataclass(frozen=True)
class Budget:
    """How much a search may spend; the segments that run when it is spent still end."""

    amount: float
    unit: Unit
    price: Price | None = None
    """That turns time into money."""

    @property
    def device_seconds(self) -> float | None:
        """The budget in what trials cost; None if it is in something else."""
        match self.unit:
            case "gpu-hours" | "cpu-hours":
                return 3600 * self.amount
            case "money" if self.price is not None:
                return 3600 * self.amount / self.price.amount
            case _:
                return None

    @classmethod
    def parse(cls, text: str, price: Price | None = None) -> "Budget":
        """Reads `40gpu-hours`, `300 epochs`, in the price's currency `40usd`; `seconds` are those of jobs' workers.

        Raises:
            UserError: it is no positive number with a unit.
        """
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([A-Za-z-]+|[$€£¥])\s*", text)
        unit = match[2] if match is not None else ""
        if match is not None and price is not None and unit == price.currency:
            unit = "money"
        elif unit == "money" or unit not in get_args(Unit):
            unit = ""
        if match is None or not unit or float(match[1]) <= 0:
            money = price.currency if price is not None and price.currency else "with --price 2.5usd also usd"
            units = ", ".join([*get_args(Unit)[:-1], money])
            raise UserError(f"--budget {text}: write a positive number and a unit ({units}), for example 40gpu-hours")
        return cls(float(match[1]), unit, price)  # type: ignore[arg-type]
