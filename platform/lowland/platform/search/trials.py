"""What a search knows of its trials: plain data, made anew from storage whenever it is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["running", "paused", "finished", "stopped", "failed"]
"""`paused` may be gone on with, `stopped` was given up by the policy, `failed` has no usable value."""


PAUSED = "lowland:paused"
"""User attribute of a trial in storage that waits."""
SOURCE = "lowland:source"
"""User attribute of a trial in storage that is an earlier training: where it comes from."""
TARGET = "lowland:target"
"""User attribute of a trial in storage: `TrialView.target`."""


@dataclass(frozen=True)
class TrialView:
    """One trial."""

    number: int
    parameters: Mapping[str, Any]
    curve: Mapping[int, float]
    """By resource (steps, tokens or epochs) what was measured; lower is better, whatever the study's direction."""
    status: Status
    target: int
    """The resource at which its running segment ends, or its last one ended."""

    @property
    def reached(self) -> int:
        """The largest resource with a measurement; 0 before the first."""
        return max(self.curve, default=0)

    @property
    def best(self) -> float:
        """The lowest value it ever had; infinite without one."""
        return min(self.curve.values(), default=float("inf"))


@dataclass(frozen=True)
class Segment:
    """Train a trial from one resource to another; 0 is the beginning."""

    trial: int
    start: int
    end: int


def at(trials: Sequence[TrialView], resource: int) -> dict[int, float]:
    """By trial number, the values measured at exactly this resource."""
    return {trial.number: trial.curve[resource] for trial in trials if resource in trial.curve}
