"""Workers that fail: told to the user at once, and not restarted where that would only repeat the failure."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import UserCallback

from lowland.platform.board import Failure
from lowland.trainers.errors import LowlandError, RunError, UserError

DEFECTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""What a defect of the code raises: the next attempt would raise it again."""
CUT_OFF = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
"""What gloo and NCCL say on the ranks that are left when another has died; they may notice before Ray does."""
ANSWER_SECONDS = 10.0


class FailureWatch(UserCallback):  # type: ignore[misc]
    """Called by Ray's controller when ranks have failed, before it restarts them.

    Ray counts failures and does not ask what failed; an exception from here is the one thing after which it
    does not restart.

    Args:
        board: knows whether a rank met an error that a restart would only repeat.
        max_failures: the run's; -1 is without limit.
    """

    def __init__(self, board: Any, max_failures: int) -> None:
        self._board, self._max = board, max_failures
        self._failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Tells the board, and keeps Ray from restarting if that is of no use.

        Raises:
            RunError: it is of no use.
        """
        self._failures += 1
        event = f"{describe(worker_exceptions)}; {self._next()}"
        try:
            useless = ray.get(self._board.lost.remote(event), timeout=ANSWER_SECONDS)
        except RayError:  # without a board nothing is known: restart
            return
        if useless:
            raise RunError("a restart would repeat the error")

    def _next(self) -> str:
        if self._max == -1:
            return f"restarting from the last checkpoint (failure {self._failures})"
        if self._failures > self._max:
            return f"failure {self._failures}, and scaling.max_failures is {self._max}"
        return f"restarting from the last checkpoint (failure {self._failures} of at most {self._max})"


def not_repeated(error: Exception, rank: int, log: str) -> Failure | None:
    """The failure to report in place of restarts, if a restart would only repeat the error.

    Args:
        error: what a rank met.
        rank: that rank.
        log: where the rank's output is.
    """
    if isinstance(error, LowlandError):
        return Failure(isinstance(error, UserError), str(error))
    if isinstance(error, DEFECTS):
        return Failure(False, f"rank {rank} failed: {type(error).__name__}: {error}; its traceback is in {log}")
    return None


def describe(failures: Mapping[int, Exception]) -> str:
    """Which rank failed and why, in a line; a rank that died comes before those that its death made fail."""
    died = sorted(rank for rank, error in failures.items() if _died(error))
    if died:
        return f"the worker of rank {', '.join(map(str, died))} died"
    rank, error = min(failures.items())
    if any(text in str(error) for text in CUT_OFF):
        return f"rank {rank} lost its connection to another worker"
    return f"rank {rank} failed: {last_line(error)}"


def last_line(error: BaseException) -> str:
    """The last line of an error's text, which for Ray's errors holds a traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _died(error: Exception) -> bool:
    """Whether the process is gone, as far as Ray's poll of it could see."""
    return isinstance(getattr(error, "health_check_failure", error), RayError)
