"""The next step's inputs, on their way to the GPU while this step is computed."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from lowland.trainers.engines import Inputs
from lowland.trainers.tasks import StepInputs


class StepsAhead:
    """A stream of steps, of which the next one can be taken early.

    Taking and copying the next batch is done in the shadow of this one's forward and backward pass.  Where the host
    then waits for the gradient norm, the GPU waits for all that the host does before the next forward pass.

    Args:
        steps: the stream.
        device: of the training.
    """

    def __init__(self, steps: Iterator[StepInputs], device: torch.device) -> None:
        self._steps, self._device = steps, device
        # On a stream of its own the copy does not wait for the backward pass, nor the optimizer for the copy.
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: StepInputs | Exception | None = None
        self._sent = False

    def fetch(self) -> None:
        """Waits until the next step is made; an error is kept for `take`."""
        if self._next is not None:
            return
        try:
            self._next = next(self._steps)
        except Exception as error:  # of the step after this one, which is to end as if nothing were wrong
            self._next = error

    def send(self) -> None:
        """Begins to copy the first micro-batch of the step that was fetched."""
        if self._copies is None or self._sent or not isinstance(self._next, StepInputs):
            return
        first, *others = self._next.micro_batches
        with torch.cuda.stream(self._copies):
            first = moved(first, self._device)
        self._next, self._sent = replace(self._next, micro_batches=[first, *others]), True

    def take(self) -> StepInputs:
        """The next step."""
        self.fetch()
        self.send()
        step, self._next, self._sent = self._next, None, False
        if isinstance(step, Exception):
            raise step
        assert step is not None
        if self._copies is not None:
            self._hand_over(step.micro_batches[0], self._copies)
        return step

    def _hand_over(self, inputs: Inputs, copies: torch.cuda.Stream) -> None:
        """From the stream that copied them to the one that computes; their memory is then free when that is done."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(copies)
        for tensor in inputs.values():
            if tensor is not None:
                tensor.record_stream(computing)


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """The inputs on the device; what is there stays as it is."""
    return {name: None if x is None else x.to(device, non_blocking=True) for name, x in inputs.items()}
