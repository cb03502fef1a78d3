"""What a search has spent so far, on its MLflow run while it goes on."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from lowland.platform.tracking.run import TrackedRun

EVERY_SECONDS = 60.0


class LedgerLog:
    """Sends values from time to time, in a thread: a store that does not answer must not hold up a search.

    Args:
        parent: the study's run.
    """

    def __init__(self, parent: TrackedRun) -> None:
        self._parent, self._thread = parent, ThreadPoolExecutor(1)
        self._sent: Future[None] | None = None
        self._told = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for new values."""
        waiting = self._sent is not None and not self._sent.done()
        return not waiting and time.monotonic() - self._told >= EVERY_SECONDS

    def tell(self, values: Mapping[str, float], step: int) -> None:
        """Sends values; whether they arrive is not asked: those at the end of the search matter."""
        self._told = time.monotonic()
        self._sent = self._thread.submit(self._parent.log_values, dict(values), step)

    def close(self) -> None:
        """Ends it; what is under way still arrives."""
        self._thread.shutdown()
