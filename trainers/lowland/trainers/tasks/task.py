"""What the training loop needs of a task."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from lowland.trainers.data.images.elsewhere import Elsewhere
from lowland.trainers.engines import Engine, Inputs
from lowland.trainers.methods.stack import Methods
from lowland.trainers.monitor import Monitor


@dataclass(frozen=True)
class StepInputs:
    """One rank's part of a global batch, on the CPU."""

    micro_batches: Sequence[Inputs]
    weight: int
    """What the sum of losses over the global batch is divided by, the same on every rank."""
    description: str
    """Where the batch lies in the data, for messages."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of a training that its data decide."""

    tokens_per_step: int
    """Over all ranks, padding included; 0 for what has no tokens."""
    examples_per_step: int
    """Over all ranks."""
    steps_per_epoch: float
    accumulation: int
    """Micro-batches per rank and step."""
    parameters: int
    """Of the model, tied ones once."""
    flops_per_step: float
    """Model FLOPs over all ranks, forward and backward, without recomputation."""


class Task(Protocol):
    """A kind of training: its model, data and metrics."""

    methods: Methods
    """The training methods, which the task's module asks for its objective."""

    sizes: Sizes
    """Known once the task is built."""
    bf16: bool
    """Whether the model computes in bf16."""

    def build_module(self) -> nn.Module:
        """The model on the CPU, the same on every rank; its forward returns a sum of losses."""

    def check(self, engine: Engine) -> None:
        """Checks that need the built model; collective.  Raises UserError."""

    def report(self, monitor: Monitor) -> None:
        """Tells what is to be known of the data; once, before the first step of this process."""

    def steps(self, first_example: int, elsewhere: Elsewhere | None = None) -> Generator[StepInputs]:
        """The endless stream of this rank's steps from an example on.

        Args:
            first_example: its place in the stream.
            elsewhere: makes batches in other processes, for recipes that want it; None makes the same ones here.
        """

    def stepped(self, engine: Engine, *, applied: bool | Tensor) -> None:
        """Called after every step with whether it changed the weights, which only the device may know; collective."""

    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Metrics on the held-out set, the same on every rank and at every world size; collective."""

    def pictures(self) -> Mapping[str, bytes]:
        """Of the latest evaluation, as PNG files by name; asked of rank 0 alone, after the last evaluation."""

    def export(self, engine: Engine, folder: Path, card: str) -> None:
        """Writes the final model; rank 0 writes, collective."""
