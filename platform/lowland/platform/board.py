"""The board between a training's rank 0 and its driver: news one way, the wish to stop the other.

`ray.train.report` is no road for this: every rank must call it equally often and each call waits for
the controller.  The board is an actor without CPUs; rank 0 posts to it and never waits.  Training goes on without it.
"""

import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lowland.platform.tracking.writer import MetricWriter
from lowland.trainers.monitor import Progress

POST_SECONDS = 0.25
"""Least time between two posts of progress."""
CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class Failure:
    """An error that a restart would only repeat."""

    user: bool
    """Whether it is something the user can correct."""
    message: str


@dataclass(frozen=True)
class News:
    """What happened since the last look."""

    progress: Progress | None = None
    events: list[str] = field(default_factory=list)
    failure: Failure | None = None
    """Stays once it is there."""


class Board:
    """The actor's class."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._events: deque[str] = deque()
        self._stop = False
        self._failure: Failure | None = None

    def post(self, progress: Progress | None, events: list[str]) -> bool:
        """Takes news from rank 0; returns whether the driver wants the training to stop."""
        self._progress = progress or self._progress
        self._events.extend(events)
        return self._stop

    def read(self, stop: bool) -> News:
        """Gives the driver what is new, and takes whether it wants the training to save and end after its step."""
        news = News(self._progress, list(self._events), self._failure)
        self._stop = stop
        self._progress = None
        self._events.clear()
        return news

    def fail(self, failure: Failure) -> None:
        """Takes an error that a restart would only repeat, from any rank; the first one counts."""
        self._failure = self._failure or failure

    def lost(self, event: str) -> bool:
        """Takes the news that ranks failed; returns whether it is of no use to restart them."""
        if self._failure is None:
            self._events.append(event)
        return self._failure is not None


def create_board() -> Any:
    """Starts the actor; it ends with the driver.

    It lives on the driver's node, since others may be taken away, and comes back if its process dies.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(**options)(Board).remote()


class BoardMonitor:
    """Rank 0's monitor: metrics to MLflow, progress and events to the board; nothing here waits."""

    def __init__(self, board: Any, writer: MetricWriter) -> None:
        self._board, self._writer = board, writer
        self._events: list[str] = []
        self._posted = 0.0
        self._reply: Any = None
        self._stop = False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Queues the metrics for MLflow."""
        self._writer.log(step, values)

    def progress(self, progress: Progress) -> None:
        """Posts progress a few times a second, and at once with news or at the end."""
        now = time.monotonic()
        if self._events or progress.step == progress.total_steps or now - self._posted >= POST_SECONDS:
            self._posted = now
            self._read_reply()
            self._reply = self._board.post.remote(progress, self._events)
            self._events = []

    def event(self, text: str) -> None:
        """Keeps an event for the next post."""
        self._events.append(text)

    def artifact(self, name: str, content: bytes) -> None:
        """Queues the file for MLflow."""
        self._writer.file(name, content)

    def stop_requested(self) -> bool:
        """What the board last said."""
        self._read_reply()
        return self._stop

    def close(self) -> None:
        """Posts what is left."""
        with suppress(RayError):
            ray.get(self._board.post.remote(None, self._events), timeout=CLOSE_SECONDS)

    def _read_reply(self) -> None:
        """Takes the answer to the last post if it is there."""
        if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
            with suppress(RayError):
                self._stop = self._stop or ray.get(self._reply)
            self._reply = None
