"""Steps made by other processes of this machine, through torch's DataLoader."""

from collections.abc import Callable, Generator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lowland.trainers.data.images.elsewhere import Arrays
from lowland.trainers.errors import LowlandError


class Processes:
    """Makes what `Elsewhere` is asked for; each process needs some seconds to start, and ends with this one.

    Args:
        number: of processes, each with one thread.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, build: Callable[[int], Arrays], ahead: int) -> Generator[Arrays]:
        """See `Elsewhere`."""
        loader: DataLoader[Arrays | LowlandError] = DataLoader(
            _Steps(build),
            batch_size=None,
            sampler=count(),
            num_workers=self._number,
            prefetch_factor=max(1, -(-ahead // self._number)),
            collate_fn=_as_it_is,
            # This process has threads, and perhaps a GPU: a fork of it may hang.
            multiprocessing_context="spawn",
            # The loader draws a number, which must not be one that the training would have drawn.
            generator=torch.Generator(),
        )
        for made in loader:
            if isinstance(made, LowlandError):
                raise made
            yield made


class _Steps(Dataset["Arrays | LowlandError"]):
    def __init__(self, build: Callable[[int], Arrays]) -> None:
        self._build = build

    def __getitem__(self, index: int) -> Arrays | LowlandError:
        try:
            return self._build(index)
        except LowlandError as error:  # the loader would add text of its own
            return error


def _as_it_is(made: Any) -> Any:
    """Arrays travel through a pipe: as tensors they would need shared memory, of which containers have little."""
    return made
