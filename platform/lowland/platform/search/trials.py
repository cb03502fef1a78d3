"""What a search knows of its trials: plain data, made anew from storage whenever it is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["running", "paused", "finished", "stopped", "failed"]
"""`paused` may be gone on with, `stopped` was given up by the policy, `failed` has no usable value."""


PAUSED = "lowland:paused"
"""User attribute of a trial in storage: the target at which it waited last; see `waits`."""
SOURCE = "lowland:source"
"""User attribute of a trial in storage that is an earlier training: where it comes from."""
ORIGIN = "lowland:origin"
"""User attribute of a trial in storage that was forked from another one: its `Origin` as data."""
TARGET = "lowland:target"
"""User attribute of a trial in storage: `TrialView.target`."""


@dataclass(frozen=True)
class Origin:
    """Where a trial has its weights from that was forked from another one."""

    parent: int
    replaces: int
    """The trial that was given up for it."""
    resource: int
    """How far the parent was."""


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
    source: str = ""
    """Where it comes from, if it is an earlier training that the search was told of."""
    origin: Origin | None = None
    refused: bool = False
    """Whether its parameters make no training."""

    @property
    def begun_at(self) -> int:
        """The resource at which it began: 0, or where it was forked."""
        return self.origin.resource if self.origin is not None else 0

    @property
    def reached(self) -> int:
        """The largest resource with a measurement; before the first, where it began."""
        return max(self.curve, default=self.begun_at)

    @property
    def best(self) -> float:
        """The lowest value it ever had; infinite without one."""
        return min(self.curve.values(), default=float("inf"))


@dataclass(frozen=True)
class Earlier:
    """A training of before."""

    source: str
    """Says where it comes from, as 'study a, trial 3'."""
    parameters: Mapping[str, Any]
    curve: Mapping[int, float]
    """By resource, in the new search's units and in its direction, what was measured."""


@dataclass(frozen=True)
class Segment:
    """Train a trial from one resource to another; 0 is the beginning."""

    trial: int
    start: int
    end: int


@dataclass(frozen=True)
class Fork:
    """Begin a trial from the checkpoint of another one."""

    origin: Origin
    end: int
    parameters: Mapping[str, Any]


def waits(attributes: Mapping[str, Any]) -> bool:
    """Whether a trial in storage, by its user attributes, is paused.

    One write ends the pause and begins the next segment: a driver may die between any two.
    """
    return PAUSED in attributes and attributes[PAUSED] == attributes.get(TARGET)


def at(trials: Sequence[TrialView], resource: int) -> dict[int, float]:
    """By trial number, the values measured at exactly this resource."""
    return {trial.number: trial.curve[resource] for trial in trials if resource in trial.curve}
