"""The queue between a search and its workers: an actor without CPUs.

A search awaits `run`; the first rank of every group of workers asks `take` for the next job, and tells how it ended.
Groups stay between jobs, with their processes, imports and CUDA contexts.  A group that lost a worker is gone: its job
goes back to the head of the queue, and whichever group is free first begins it again.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from lowland.platform.search.jobs import Job, Outcome, Resources
from lowland.trainers.monitor import Progress

TAKE_SECONDS = 2.0
"""How long `take` waits: ranks that wait for the first one's answer must hear of it before collectives time out."""
TOGETHER_SECONDS = 10.0
"""How long ranks that met an error wait for the others to meet it too."""


@dataclass
class _Waiting:
    """A job that somebody waits for."""

    job: Job
    ended: "asyncio.Future[Outcome]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    attempts: int = 0
    seconds: float = 0.0
    """That attempts before this one had workers."""
    began: float = 0.0
    """When workers took it; 0 while it waits."""
    trouble: str = ""
    """What the latest attempt failed of."""
    progress: Progress | None = None


@dataclass(frozen=True)
class Look:
    """How jobs and groups stand."""

    demand: dict[Resources, int]
    """How many jobs wait for workers of each kind."""
    busy: frozenset[int]
    """Groups that have a job."""
    progress: dict[str, Progress]
    """By run of the job, of those that train."""
    came: frozenset[int]
    """Groups whose workers have ever asked for a job."""
    events: tuple[str, ...]
    """What happened since the last look."""


class Dispatcher:
    """The actor's class.

    Args:
        max_failures: how often a job whose workers died is given out again; -1 is without limit.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._queue: deque[_Waiting] = deque()
        self._at: dict[int, _Waiting] = {}
        """By group, the job it has."""
        self._met: dict[int, set[int]] = {}
        """By group, the ranks that met an error in the job it has or had last."""
        self._jobs: dict[tuple[str, str], _Waiting] = {}
        """By run, its latest job."""
        self._came: set[int] = set()
        self._closed: set[int] = set()
        """Groups that get no job any more."""
        self._controllers: dict[int, bytes] = {}
        self._events: list[str] = []
        self._stopping = False
        self._changed = asyncio.Condition()

    async def run(self, job: Job) -> Outcome:
        """Waits until the job has ended, however often it must be begun.

        The process that waits may die, and another ask for the same job: it is one job all the same.
        """
        run = job.task["recipe"].get("storage", ""), job.task["recipe"]["name"]
        waiting = self._jobs.get(run)
        if waiting is None or waiting.job != job:
            if self._stopping:
                return Outcome("interrupted")
            waiting = self._jobs[run] = _Waiting(job)
            self._queue.append(waiting)
            await self._notify()
        return await asyncio.shield(waiting.ended)

    async def take(self, group: int, resources: Resources) -> Job | None:
        """The next job for a group; None: ask again, or end if `closed`."""
        self._came.add(group)
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._ready(group, resources)), TAKE_SECONDS)
            except TimeoutError:
                return None
            if group in self._closed:
                return None
            waiting = next(w for w in self._queue if w.job.resources == resources)
            self._queue.remove(waiting)
        self._at[group] = waiting
        waiting.began, waiting.progress, waiting.trouble = time.monotonic(), None, ""
        waiting.attempts += 1
        self._met[group] = set()
        return waiting.job

    async def done(self, group: int, outcome: Outcome) -> None:
        """The training of a group has ended by itself."""
        self._end(group, outcome)

    async def met(self, group: int, rank: int, outcome: Outcome, ranks: int) -> bool:
        """A rank met an error that ends its job; returns whether all of them did, and none waits for another.

        The first one's outcome counts.
        """
        self._end(group, outcome)
        met = self._met.setdefault(group, set())
        met.add(rank)
        await self._notify()
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: len(met) == ranks), TOGETHER_SECONDS)
            except TimeoutError:
                return False
        return True

    async def trouble(self, group: int, text: str) -> None:
        """What a rank failed of, before its group is gone; the first rank's counts."""
        if group in self._at:
            self._at[group].trouble = self._at[group].trouble or text

    async def post(self, group: int, progress: Progress | None, events: list[str]) -> bool:
        """News from the first rank of a group; returns whether its training is to save and end."""
        if group in self._at and progress is not None:
            self._at[group].progress = progress
        return self._stopping

    async def close(self, group: int) -> None:
        """Lets a group end when it is idle."""
        self._closed.add(group)
        await self._notify()

    async def closed(self, group: int) -> bool:
        """Whether a group is to end."""
        return group in self._closed and group not in self._at

    async def led(self, group: int, controller: bytes) -> None:
        """Who leads a group; pickled, since reading it would import Ray Train while others wait."""
        self._controllers[group] = controller

    async def controller(self, group: int) -> bytes | None:
        """Who leads a group, pickled; None if its controller has not started."""
        return self._controllers.get(group)

    async def lost(self, group: int, why: str) -> None:
        """A group is gone; another one gets its job, if it may be begun again."""
        self._closed.add(group)
        waiting = self._at.get(group)
        if waiting is None:
            await self._notify()
            return
        waiting.trouble = waiting.trouble or why
        if self._stopping:
            self._end(group, Outcome("interrupted"))
        elif self._max_failures != -1 and waiting.attempts > self._max_failures:
            self._end(group, self._given_up(waiting))
        else:
            del self._at[group]
            waiting.seconds += time.monotonic() - waiting.began
            self._events.append(f"{waiting.job.task['recipe']['name']}: {waiting.trouble}; begun again")
            self._queue.appendleft(waiting)
        await self._notify()

    async def stop(self) -> None:
        """Lets jobs that train save and end after their step; those that wait end at once."""
        self._stopping = True
        for waiting in self._queue:
            waiting.ended.set_result(Outcome("interrupted"))
        self._queue.clear()

    async def look(self) -> Look:
        """How jobs and groups stand."""
        demand: dict[Resources, int] = {}
        for waiting in self._queue:
            demand[waiting.job.resources] = demand.get(waiting.job.resources, 0) + 1
        training = {w.job.task["recipe"]["name"]: w.progress for w in self._at.values() if w.progress is not None}
        events, self._events = tuple(self._events), []
        return Look(demand, frozenset(self._at), training, frozenset(self._came), events)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _ready(self, group: int, resources: Resources) -> bool:
        return group in self._closed or any(waiting.job.resources == resources for waiting in self._queue)

    def _given_up(self, waiting: _Waiting) -> Outcome:
        why = waiting.trouble or "a worker died"
        return Outcome("failed", f"{why}; failure {waiting.attempts}, and scaling.max_failures is {self._max_failures}")

    def _end(self, group: int, outcome: Outcome) -> None:
        waiting = self._at.pop(group, None)
        if waiting is None:
            return
        seconds = waiting.seconds + time.monotonic() - waiting.began
        waiting.ended.set_result(replace(outcome, attempts=waiting.attempts, seconds=seconds))


class GroupBoard:
    """What `lowland.platform.board.BoardMonitor` takes for a board, for one group's trainings."""

    def __init__(self, dispatcher: Any, group: int) -> None:
        self.post = _Post(dispatcher, group)


@dataclass(frozen=True)
class _Post:
    dispatcher: Any
    group: int

    def remote(self, progress: Progress | None, events: list[str]) -> Any:
        """As of an actor's method."""
        return self.dispatcher.post.remote(self.group, progress, events)


def create_dispatcher(max_failures: int) -> Any:
    """Starts the actor on the driver's node; it ends with the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": here}
    return ray.remote(**options)(Dispatcher).remote(max_failures)
