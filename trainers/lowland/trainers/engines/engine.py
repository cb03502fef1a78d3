"""What the training loop needs of an engine, whichever library shards the training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from lowland.optim import Segment, Weights
from lowland.trainers.engines.outcome import StepOutcome, UnreadOutcome

Inputs = Mapping[str, Tensor | None]
"""Keyword arguments of the module's forward, on the training device."""


@dataclass(frozen=True)
class StatePiece:
    """This rank's piece of one parameter's training state; loading writes into its tensors."""

    name: str
    numel: int
    """Elements of the whole parameter."""
    segment: Segment
    tensors: dict[str, Tensor]
    """`weight` (fp32 master) and each optimizer state of that size: views of `segment.numel` elements."""
    scalars: dict[str, Tensor]
    """Optimizer states that are one number, for example AdamW's `step`: 0-d tensors."""


class Engine(Protocol):
    """A model, its optimizer and how both are spread over the workers.

    One optimizer step is: `accumulate` for each micro-batch, then `step`, and both again while it asks for it.
    The module's forward returns the sum of losses over its micro-batch, a scalar.
    """

    module: nn.Module
    """The model as built, with its own parameter names."""
    replicated: bool
    """Whether every rank holds the whole training state, so that one rank's copy is enough."""

    @property
    def several_passes(self) -> bool:
        """Whether a step may evaluate its batch more than once."""

    @property
    def weights(self) -> Weights:
        """Where masters, the model's weights and gradients are kept."""

    def accumulate(self, inputs: Inputs, *, scale: float, last: bool) -> Tensor:
        """Forward and backward of one micro-batch.

        Args:
            inputs: the module's arguments.
            scale: what the micro-batch's sum of losses is multiplied by, the same on every rank:
                gradients become the sum over ranks and micro-batches of `scale` times theirs.
            last: whether this is the step's last micro-batch; gradients are summed over ranks then.

        Returns:
            The micro-batch's sum of losses, detached, unscaled, on the training device.
        """

    def step(self, lr_factor: float) -> StepOutcome | UnreadOutcome:
        """Clips and applies the gradients, unless one is not finite.

        Args:
            lr_factor: what each parameter group's learning rate is multiplied by.

        Returns:
            What became of it; unread where the device decides, which costs the host no waiting.
        """

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode without gradients inside, at the optimizer's evaluation weights if it has any; collective."""

    def evaluate(self, inputs: Inputs) -> Tensor:
        """The sum of losses of one micro-batch; collective at ZeRO stage 3."""

    def pieces(self) -> Iterator[StatePiece]:
        """This rank's training state, piece by piece."""

    def create_state(self) -> None:
        """Makes the optimizer create its (zero) state, so that `pieces` can be loaded into."""

    def optimizer_metrics(self) -> dict[str, float]:
        """What the optimizer says of its last step, by name, the same on every rank."""

    def shared_state(self) -> dict[str, float]:
        """Optimizer state that belongs to no single parameter, by name, the same on every rank."""

    def load_shared_state(self, state: Mapping[str, float]) -> None:
        """Restores `shared_state`."""

    def owned_state(self) -> dict[str, dict[str, Tensor | float]]:
        """Optimizer state of whole parameters that this rank alone keeps, to be saved for all, by parameter."""

    def load_owned_state(self, read: Callable[[str], dict[str, Tensor | float]]) -> None:
        """Restores `owned_state`; `read` gives a parameter's."""

    def masters_changed(self) -> None:
        """Brings the model's weights in line after masters were written through `pieces`; collective."""

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and persistent buffer, whole, one at a time, on rank 0's CPU; collective."""

    def close(self) -> None:
        """Releases what the engine holds."""
