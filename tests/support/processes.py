"""Several gloo processes on this machine, for what needs ranks but no cluster."""

from collections.abc import Callable
from typing import Any

from lowland.trainers.optcheck.processes import Processes as Ranks

__all__ = ["Ranks", "run_ranks"]


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
    """Calls `function(*arguments)` on every rank of new processes; the ranks' results in order."""
    with Ranks(world_size, timeout) as ranks:
        return ranks(function, *arguments)
