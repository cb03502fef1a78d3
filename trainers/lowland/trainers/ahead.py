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

    def fetch(self) -> None:
        """Takes the next step and begins to copy its first micro-batch; an error is kept for `take`."""
        if self._next is not None:
            return
        try:
            step = next(self._steps)
        except Exception as error:  # of the step after this one, which is to end as if nothing were wrong
            self._next = error
            return
        first, *others = step.micro_batches
        if self._copies is not None:
            with torch.cuda.stream(self._copies):
                first = moved(first, self._device)
        self._next = replace(step, micro_batches=[first, *others])

    def take(self) -> StepInputs:
        """The next step."""
        self.fetch()
        step, self._next = self._next, None
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
