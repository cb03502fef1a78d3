"""Several gloo processes on this machine, for what needs ranks but no cluster."""

import os
import queue
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class Ranks:
    """Processes with a default gloo group that call one function after another.

    Importing DeepSpeed takes seconds, so tests of one world size share the processes.  After a
    function has failed on a rank they are ended, and the next call starts new ones.

    Args:
        world_size: how many.
        timeout: seconds that a call may take.
    """

    def __init__(self, world_size: int, timeout: float = 240) -> None:
        self.world_size = world_size
        self._timeout = timeout
        self._context = mp.get_context("spawn")
        self._processes: list[Any] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls `function(*arguments)` on every rank; their results in order, or the error of one that fails."""
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
                raise AssertionError(f"rank {rank} failed:\n{error}")
            collected[rank] = value
        return [collected[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._results = self._context.Queue()
        self._tasks = [self._context.Queue() for _ in range(self.world_size)]
        self._processes = [
            self._context.Process(target=_rank, args=(rank, self.world_size, port, tasks, self._results), daemon=True)
            for rank, tasks in enumerate(self._tasks)
        ]
        for process in self._processes:
            process.start()

    def _dead(self, waited: float) -> str | None:
        dead = [process.exitcode for process in self._processes if not process.is_alive()]
        if dead:
            return f"it ended with code {dead[0]}"
        return f"no result after {waited} seconds" if waited > self._timeout else None


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
    """Calls `function(*arguments)` on every rank of new processes; the ranks' results in order."""
    with Ranks(world_size, timeout) as ranks:
        return ranks(function, *arguments)


def _rank(rank: int, world_size: int, port: int, tasks: Any, results: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    while True:
        function, arguments = tasks.get()
        try:
            results.put((rank, function(*arguments), None))
        except BaseException:
            results.put((rank, None, traceback.format_exc()))
