"""What becomes of an optimizer step, and when the host gets to know it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["StepOutcome", "UnreadOutcome"]


@dataclass(frozen=True)
class StepOutcome:
    """What became of an optimizer step, the same on every rank."""

    applied: bool
    """False if a gradient was not finite; no weight or state has changed then."""
    grad_norm: float
    """Global gradient norm before clipping; not finite if not applied."""
    again: bool = False
    """The step goes on: accumulate the same batch once more, at the weights the model has now, and step again."""

    def read(self) -> "StepOutcome":
        """Itself: it is known."""
        return self


class UnreadOutcome:
    """The same of a step that the device itself leaves out if a gradient is not finite, so that the host need not wait.

    Args:
        norm: global gradient norm before clipping, 0-d, on the training device.
    """

    again = False

    def __init__(self, norm: Tensor) -> None:
        self.applied = norm.isfinite()
        """On the device, for what depends on it there."""
        # Copied here and not when it is read: behind the next forward pass the host would wait for that as well.
        self._norm = norm.to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream(norm.device).record_event() if norm.is_cuda else None

    def read(self) -> StepOutcome:
        """Waits until the device has come to this step, not for what is queued behind it."""
        if self._copied is not None:
            self._copied.synchronize()
        norm = float(self._norm)
        return StepOutcome(math.isfinite(norm), norm)
