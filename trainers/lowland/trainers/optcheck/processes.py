"""Several gloo processes on this machine that call one function after another."""

import os
import queue
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lowland.trainers.errors import RunError

__all__ = ["Processes"]

SECONDS = 240.0
"""How long a call may take, and a rank may wait for another: only what hangs takes as long."""


class Processes:
    """Processes with a default gloo group, started by the first call and shared by all.

    Importing DeepSpeed takes seconds, so that calls share the processes.  After a function has failed on a
    rank they are ended, and the next call starts new ones.

    Args:
        world_size: how many.
        timeout: seconds that a call may take.
        quiet: whether what they write is dropped; errors come back in any case.
    """

    def __init__(self, world_size: int, timeout: float = SECONDS, *, quiet: bool = False) -> None:
        self.world_size = world_size
        self._quiet = quiet
        self._timeout = timeout
        self._context = mp.get_context("spawn")
        self._processes: list[Any] = []
        self._meeting: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls `function(*arguments)` on every rank; their results in the order of ranks.

        Raises:
            RunError: it failed on a rank, whose traceback is the message.
        """
        if not self._processes:
            self._start()
        for tasks in self._tasks:
            tasks.put((function, arguments))
        collected: dict[int, Any] = {}
        waited = 0
        while len(collected) < self.world_size:
            try:
                rank, value, error = self._results.get(timeout=1)
            except queue.Empty:
                waited += 1
                error = self._dead(waited)
                if error is None:
                    continue
                rank = -1
            if error is not None:
                self.close()
                raise RunError(f"rank {rank} failed:\n{error}")
            collected[rank] = value
        return [collected[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []
        if self._meeting is not None:
            self._meeting.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        # The ranks meet at a file: a port could be taken by another process before they get to it.
        self._meeting = tempfile.TemporaryDirectory(prefix="ranks-")
        meeting = Path(self._meeting.name) / "store"
        self._results = self._context.Queue()
        self._tasks = [self._context.Queue() for _ in range(self.world_size)]
        self._processes = [
            self._context.Process(
                target=_rank, args=(rank, self.world_size, meeting, tasks, self._results, self._quiet), daemon=True
            )
            for rank, tasks in enumerate(self._tasks)
        ]
        for process in self._processes:
            process.start()

    def _dead(self, waited: float) -> str | None:
        dead = [process.exitcode for process in self._processes if not process.is_alive()]
        if dead:
            return f"it ended with code {dead[0]}"
        return f"no result after {waited} seconds" if waited > self._timeout else None


def _rank(rank: int, world_size: int, meeting: Path, tasks: Any, results: Any, quiet: bool) -> None:
    if quiet:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
        DS_ACCELERATOR="cpu",
    )
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=rank, world_size=world_size, timeout=timedelta(seconds=SECONDS)
    )
    while True:
        function, arguments = tasks.get()
        try:
            results.put((rank, function(*arguments), None))
        except BaseException:
            results.put((rank, None, traceback.format_exc()))
