"""Optimizers in whose steps something goes wrong on one rank, for `optimizer.name: custom`."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class Full(torch.optim.SGD):
    """The device of rank 1 is full."""

    def step(self, closure: Any = None) -> Any:
        """Raises there."""
        if dist.get_rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().step(closure)


class Slow(torch.optim.SGD):
    """A step takes at least a tenth of a second."""

    def step(self, closure: Any = None) -> Any:
        """Waits."""
        time.sleep(0.1)
        return super().step(closure)


class Dies(torch.optim.SGD):
    """Rank 1 is killed once.

    Args:
        params: as SGD takes them.
        lr: the same.
        marker: a file that is made when it is.
    """

    def __init__(self, params: Any, lr: float, marker: str) -> None:
        super().__init__(params, lr)
        self._marker = Path(marker)

    def step(self, closure: Any = None) -> Any:
        """Kills the process the first time."""
        if dist.get_rank() == 1 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(closure)
