"""What a training tells the outside, and what it asks of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Where a training is; sent after every step by rank 0, so making one must stay cheap."""

    step: int
    total_steps: int
    tokens: int
    loss: float | None
    """Training loss (nats per token) of the latest recorded step; None before the first."""
    tokens_per_second: float | None
    """In `unit`, over the steps since the previous record; None before the first."""
    phase: str
    """`training`, `evaluating`, `measuring`, `saving` or `exporting`."""
    unit: str = "tokens"
    """What the pace is counted in: `tokens`, or `samples` where there are none."""


class Monitor(Protocol):
    """The outside of a training, as rank 0 sees it; every call returns at once."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Records metrics of a step."""

    def progress(self, progress: Progress) -> None:
        """Shows where the training is."""

    def event(self, text: str) -> None:
        """Tells the user something worth a line, for example that a checkpoint was written."""

    def artifact(self, name: str, content: bytes) -> None:
        """Keeps a file with the run, under a relative path; the latest of a name counts."""

    def stop_requested(self) -> bool:
        """Whether the training should save and end after this step."""


class SilentMonitor:
    """Records nothing and never stops; what every rank but 0 gets."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Ignores the metrics."""

    def progress(self, progress: Progress) -> None:
        """Ignores the progress."""

    def event(self, text: str) -> None:
        """Ignores the event."""

    def artifact(self, name: str, content: bytes) -> None:
        """Ignores the file."""

    def stop_requested(self) -> bool:
        """Never asks to stop."""
        return False
