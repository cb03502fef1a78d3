"""What a search compares, and bounds that its trials must keep."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lowland.trainers.errors import UserError

Direction = Literal["minimize", "maximize"]
Cost = Literal["gpu-hours", "cpu-hours", "seconds"]
COSTS: tuple[Cost, ...] = get_args(Cost)
"""What a trial took so far, as budgets name it: known of every training, besides the metrics that it gives."""


@dataclass(frozen=True)
class Objective:
    """A metric and where it is to go."""

    metric: str
    direction: Direction = "minimize"

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Reads `eval/loss`, which is to fall, or `eval/accuracy:maximize`.

        Raises:
            UserError: it is neither.
        """
        metric, _, direction = text.partition(":")
        if not metric or direction not in ("", *get_args(Direction)):
            raise UserError(f"--metric {text}: write a metric, or a metric with :minimize or :maximize after it")
        return cls(metric, direction or "minimize")  # type: ignore[arg-type]

    @property
    def sign(self) -> float:
        """What makes lower values better."""
        return 1.0 if self.direction == "minimize" else -1.0

    def __str__(self) -> str:
        return f"{self.metric}:{self.direction}"


@dataclass(frozen=True)
class Bound:
    """A metric and what it must keep to."""

    metric: str
    most: float
    """The bound."""
    sign: float = 1.0
    """-1 if the bound is the least instead."""

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """Reads `perf/gpu_memory_gib <= 70` or `eval/accuracy >= 0.8`.

        Raises:
            UserError: it is no metric, `<=` or `>=`, and a number.
        """
        match = re.fullmatch(r"\s*([^\s<>=]+)\s*(<=|>=)\s*(\S+)\s*", text)
        try:
            most = float(match[3]) if match is not None else math.nan
        except ValueError:
            most = math.nan
        if match is None or not math.isfinite(most):
            raise UserError(
                f"--constraint '{text}': write a metric, <= or >=, and a number, as 'perf/gpu_memory_gib <= 70'"
            )
        return cls(match[1], most, 1.0 if match[2] == "<=" else -1.0)

    def excess(self, value: float) -> float:
        """By how much a value breaks it, at most 0 if it does not; infinite for what is no number."""
        return math.inf if math.isnan(value) else self.sign * (value - self.most)

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.sign > 0 else '>='} {self.most:g}"


def costs(accounts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """By `COSTS`, what a trial's segments took."""
    held = list(accounts)
    return {
        "gpu-hours": sum(a["seconds"] * a["gpus"] for a in held) / 3600,
        "cpu-hours": sum(a["seconds"] * a["cpus"] for a in held) / 3600,
        "seconds": float(sum(a["seconds"] for a in held)),
    }


def front(points: Mapping[int, Sequence[float]]) -> list[int]:
    """The keys of points that no other beats: as good in every value, and better in one; lower is better.

    Points that are equal in all values are all there.
    """

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)

    return [key for key, point in points.items() if not any(beats(other, point) for other in points.values())]
