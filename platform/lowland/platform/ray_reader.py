"""Batches made by Ray Data in processes anywhere on the cluster: the option for many CPU nodes that feed few GPUs.

Each worker runs a pipeline of its own: numbers of steps, one to a block, go through a pool of actors that make the
step of a number, and come back in their order (`preserve_order`).  What a step is made of depends on its number alone,
so that it is the same one wherever it is made, and again if an actor died.
"""

import pickle
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions

from lowland.trainers.data.images.elsewhere import Arrays
from lowland.trainers.errors import LowlandError

STEPS = 5_000
"""Steps of one pipeline: Ray Data plans all of its blocks before the first; the actors begin anew after it."""
_ERROR = "error"
"""Column of a step that could not be made: the pickled error."""


class RayReader:
    """Makes what `Elsewhere` is asked for.

    Args:
        tasks: actors, each with a CPU.
    """

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks

    def __call__(self, build: Callable[[int], Arrays], ahead: int) -> Generator[Arrays]:
        """See `Elsewhere`."""
        held = ray.put(build)
        for first in count(0, STEPS):
            with closing(self._pipeline(held, first, ahead)) as made:
                yield from made

    def _pipeline(self, held: Any, first: int, ahead: int) -> Generator[Arrays]:
        _set_options()
        numbers = [pa.table({"step": [first + index]}) for index in range(STEPS)]
        steps = ray.data.from_blocks(numbers).map_batches(
            _Maker,
            fn_constructor_args=(held,),
            batch_size=1,
            num_cpus=1,
            compute=ActorPoolStrategy(size=self._tasks),
        )
        for arrays in steps.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=ahead):
            if _ERROR in arrays:
                raise pickle.loads(arrays[_ERROR].tobytes())
            yield {name: values[0] for name, values in arrays.items()}


class _Maker:
    """One of the actors."""

    def __init__(self, held: Any) -> None:
        self._build: Callable[[int], Arrays] = ray.get(held)

    def __call__(self, numbers: Arrays) -> Arrays:
        try:
            arrays = self._build(int(numbers["step"][0]))
        except LowlandError as error:  # Ray Data would end the steps before it and add text of its own
            arrays = {_ERROR: np.frombuffer(pickle.dumps(error), np.uint8)}
        return {name: values[None] for name, values in arrays.items()}


def _set_options() -> None:
    context = DataContext.get_current()
    context.execution_options = ExecutionOptions(preserve_order=True, verbose_progress=False)
    context.enable_progress_bars = False
