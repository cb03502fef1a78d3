"""Sends metric points to one MLflow run, each (key, step) once."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lowland.platform.runs import RunFolder, RunRecord, run_names
from lowland.platform.tracking.points import FileSpool, Point, Spool, spools
from lowland.platform.tracking.store import connect
from lowland.platform.urls import redact

log = logging.getLogger(__name__)

BATCH = 1000
"""Metrics that MLflow takes in one request."""

# The request is wrong, so sending it again cannot help; anything else is the store's trouble, which passes.
WRONG_REQUEST = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class Delivery:
    """A connection to the store for one run.

    Points whose (key, step) the run held when the connection was made are left out: a resumed training repeats
    the steps after its checkpoint.  After any error make a new one: it sees what the failed request left.

    Raises:
        Exception: whatever mlflow raises when the store cannot be reached.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self._client = connect(uri)
        self._run_id = run_id
        self._held_keys = set(self._client.get_run(run_id).data.metrics)
        self._held_steps: dict[str, set[int]] = {}

    def send(self, batch: Sequence[Point]) -> None:
        """Sends at most `BATCH` points; returns when the store has them.

        A point that MLflow calls invalid is reported in the log and left out.

        Raises:
            Exception: whatever mlflow raises; some of the points may have been stored.
        """
        self._send([point for point in batch if point.step not in self._steps(point.key)])

    def send_file(self, name: str, content: bytes) -> None:
        """Sends a file as an artifact; one of the same name is replaced.

        Raises:
            Exception: whatever mlflow raises.
        """
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self._client.log_artifacts(self._run_id, scratch)

    def _send(self, batch: Sequence[Point]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        if not batch:
            return
        metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in batch]
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except MlflowException as error:
            if error.error_code not in WRONG_REQUEST:
                raise
            self._isolate(batch, error)

    def _isolate(self, batch: Sequence[Point], error: Exception) -> None:
        """Finds the invalid point by halves, so that it does not hold up all others for ever."""
        if len(batch) == 1:
            log.error("MLflow refuses the metric %r at step %d: %s", batch[0].key, batch[0].step, error)
            return
        half = len(batch) // 2
        self._send(batch[:half])
        self._send(batch[half:])

    def _steps(self, key: str) -> set[int]:
        """Steps of the key that the run held at the start; read once per key, and only for a resumed run."""
        if key not in self._held_keys:
            return set()
        if key not in self._held_steps:
            history = self._client.get_metric_history(self._run_id, key)
            self._held_steps[key] = {metric.step for metric in history}
        return self._held_steps[key]


def deliver_spools(folder: RunFolder, uri: str, run_id: str) -> int:
    """Delivers the points and files that writers of ended attempts left in the run folder.

    Call it while no worker of the run lives.

    Returns:
        The number of points read from the files.

    Raises:
        Exception: whatever mlflow raises; the files stay, and a later call sends only what is still missing.
    """
    files = FileSpool(folder)
    left = [(spool, spool.load()) for spool in (Spool(folder, writer) for writer in spools(folder))]
    for spool, points in left:
        delivery = Delivery(uri, run_id)
        for start in range(0, len(points), BATCH):
            delivery.send(points[start : start + BATCH])
        spool.clear()
    for name, content in files.load():
        Delivery(uri, run_id).send_file(name, content)
        files.clear(name)
    return sum(len(points) for _, points in left)


def deliver_left(storage: str, uri: str) -> int:
    """Delivers what the ended runs of a storage folder left for this store.

    Returns:
        The number of points read from the run folders.

    Raises:
        Exception: whatever mlflow raises; the files stay.
    """
    delivered = 0
    for name in run_names(storage):
        folder = RunFolder.open(storage, name)
        record = folder.read()
        if record is not None and record.mlflow_run_id and _has_ended(record) and record.tracking_uri == redact(uri):
            delivered += deliver_spools(folder, uri, record.mlflow_run_id)
    return delivered


def _has_ended(record: RunRecord) -> bool:
    """Whether no process writes the run any more, as far as can be seen from this machine."""
    if record.status != "running" or record.driver is None:
        return True
    return record.driver.local() and not record.driver.alive()
