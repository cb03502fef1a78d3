"""A segment as a job for workers, and what came of it; plain data that travels between processes."""

from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["reached", "interrupted", "diverged", "out of memory", "refused", "failed"]
"""`refused`: the parameters make no valid training; `failed`: workers died or a defect showed itself."""
UNUSABLE: tuple[End, ...] = ("diverged", "out of memory", "refused")
"""Ends that say something of the parameters: results, not failures."""


@dataclass(frozen=True)
class Resources:
    """What a group of workers holds; jobs that ask for the same may follow each other on the same workers."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    accelerator_type: str | None
    placement: str

    @property
    def cpus(self) -> float:
        """Of all workers."""
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        """Of all workers."""
        return self.workers * self.gpus_per_worker


@dataclass(frozen=True)
class Job:
    """A training from its newest checkpoint to a part of its length."""

    resources: Resources
    task: dict[str, Any]
    """What `lowland.platform.worker.train_rank` takes, without `board`."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    end: End
    message: str = ""
    """Why, unless it was reached."""
    result: dict[str, Any] = field(default_factory=dict)
    """What `train_rank` gave, if the training ended by itself."""
    attempts: int = 0
    """How often workers began it."""
    seconds: float = 0.0
    """How long workers had it."""
