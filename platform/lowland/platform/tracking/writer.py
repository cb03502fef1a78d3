"""Metrics leave a worker here: queued by the training, sent by a thread."""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice

from lowland.platform.runs import RunFolder
from lowland.platform.tracking.delivery import BATCH, Delivery
from lowland.platform.tracking.points import FileSpool, Point, Spool, points
from lowland.platform.tracking.store import first_line

log = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0
"""Seconds between two attempts at most, while the store is away."""


class MetricWriter:
    """Writes the metrics of one process to one MLflow run, without the training ever waiting for the store.

    `log` appends to a queue.  A thread, started by the first `log`, imports mlflow, connects and sends what has
    gathered every `flush_seconds`, at most 1000 points a request.  While the store is away it tries again after
    growing pauses and keeps everything, also in a file of the run folder; the writer of the next attempt, or
    `deliver_spools`, sends what that file holds.  Nothing here raises into the training.

    Args:
        uri: MLflow tracking URI.
        run_id: id of the MLflow run.
        folder: the run folder.
        name: name of this writer, unlike that of any other writer of the run that lives at the same time, and the
            same in each attempt: `rank0`, or a node's name.
        flush_seconds: seconds between two requests.
    """

    def __init__(self, uri: str, run_id: str, folder: RunFolder, name: str, flush_seconds: float = 2.0) -> None:
        self._uri = uri
        self._run_id = run_id
        self._spool = Spool(folder, name)
        self._file_spool = FileSpool(folder)
        self._flush_seconds = flush_seconds
        self._queue: deque[tuple[int, dict[str, float], float]] = deque()
        self._files: deque[tuple[str, bytes]] = deque()
        self._pending: deque[Point] = deque()
        self._delivery: Delivery | None = None
        self._spool_read = False
        self._spooled = False
        self._away = False
        self._lock = threading.Lock()  # over _pending and the spool file; never held while the store is spoken to
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queues the metrics of a step; returns at once.  Called by one thread or several."""
        self._queue.append((step, dict(values), time.time()))
        if self._thread is None:
            self._start()

    def file(self, name: str, content: bytes) -> None:
        """Queues a file, to be an artifact of the run under this relative path; returns at once."""
        self._files.append((name, content))
        if self._thread is None:
            self._start()

    def persist(self) -> None:
        """Writes what is undelivered to the run folder, if anything is.

        Called before a checkpoint is committed: a process killed after that then loses no metric from before it,
        which a resumed training would not record again.  Speaks to the storage, never to the tracking store.
        """
        try:
            with self._lock:
                self._gather()
                if self._pending:
                    self._save()
                for name, content in list(self._files):
                    self._file_spool.save(name, content)
        except Exception:
            log.warning("undelivered metrics could not be written to the run folder", exc_info=True)

    def close(self, timeout: float = 10.0) -> int:
        """Sends the rest, waiting at most `timeout` seconds; what is left then goes to the run folder.

        Returns:
            The number of points and files that are not known to be delivered.
        """
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout)
        self.persist()
        return len(self._pending) + sum(len(values) for _, values, _ in self._queue) + len(self._files)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lowland-metrics", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause = 0.0  # the first flush comes at once: importing mlflow and connecting take seconds anyway
        while True:
            closing = self._closing.wait(pause)
            pause = self._flush_seconds if self._flush() else min(max(2 * pause, 1.0), LONGEST_PAUSE)
            if closing:
                return

    def _flush(self) -> bool:
        """Sends all that has gathered; whether that worked."""
        try:
            with self._lock:
                self._gather()
            self._delivery = self._delivery or Delivery(self._uri, self._run_id)
            while self._pending:
                self._send_batch(self._delivery)
            self._clear_spool()
            while self._files:  # this thread alone removes
                self._send_first_file(self._delivery)
        except Exception as error:
            self._delivery = None
            if not self._away:  # once per outage, not once per attempt
                log.warning("the tracking store is away (%s); metrics are kept and sent later", first_line(error))
            self._away = True
            self.persist()
            return False
        self._away = False
        return True

    def _send_batch(self, delivery: Delivery) -> None:
        # Only this thread removes, and others append at the right, so the batch stays the leftmost part.
        with self._lock:
            batch = list(islice(self._pending, BATCH))
        delivery.send(batch)
        with self._lock:
            for _ in batch:
                self._pending.popleft()

    def _send_first_file(self, delivery: Delivery) -> None:
        name, content = self._files[0]
        delivery.send_file(name, content)
        with self._lock:  # `persist` would save again what is delivered
            if name not in [other for other, _ in list(self._files)[1:]]:
                with suppress(FileNotFoundError):  # also what an earlier attempt left: it is older
                    self._file_spool.clear(name)
            self._files.popleft()

    def _gather(self) -> None:
        """Moves the queue to the pending points, behind those that an earlier process left; under the lock."""
        if not self._spool_read:
            left = self._spool.load()
            self._pending.extend(left)
            self._spooled = bool(left)
            self._spool_read = True
        while self._queue:
            self._pending.extend(points(*self._queue.popleft()))

    def _save(self) -> None:
        self._spool.save(self._pending)
        self._spooled = True

    def _clear_spool(self) -> None:
        with self._lock:
            if self._spooled and not self._pending:
                self._spool.clear()
                self._spooled = False
