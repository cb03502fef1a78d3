"""The groups of workers of a search: as many as there is work and room for, of the kinds that are asked for."""

import time
from collections.abc import Callable
from typing import Any

from lowland.platform.controllers import release_orphans
from lowland.platform.search.dispatcher import Look
from lowland.platform.search.group import WorkerGroup
from lowland.platform.search.jobs import Resources
from lowland.trainers.errors import RunError

IN_A_ROW = 3
"""Groups lost one after another that never came up, after which the search ends."""
CLOSE_SECONDS = 30.0
KILL_SECONDS = 10.0
ABSENT_SECONDS = 10.0
"""Between a group that did not come up and the next one: a node that was lost may come back."""
ORPHAN_SECONDS = 5.0
"""After the loss of a group, how long what it held is looked for: Ray needs a moment to see that its leader is dead."""


class Pool:
    """Starts and ends groups.

    Args:
        dispatcher: the actor.
        storage: folder for Ray's files.
        most: groups at a time.
        room: how many groups of a kind the cluster as it is now holds; nodes come and go.
    """

    def __init__(self, dispatcher: Any, storage: str, most: int, room: Callable[[Resources], int]) -> None:
        self._dispatcher, self._storage, self._most, self._room = dispatcher, storage, most, room
        self._groups: list[WorkerGroup] = []
        self._closing: set[int] = set()
        self._count = 0
        self._prefix = f"groups-{time.time_ns()}"
        self._absent = 0
        """Groups in a row that never came up."""
        self._orphans_until = self._not_before = 0.0

    def begin(self, resources: Resources, count: int) -> None:
        """Starts groups that nobody waits for yet: they come up while a search gets ready."""
        for _ in range(min(count, self._places(resources))):
            self._start(resources)

    def tend(self, look: Look) -> None:
        """Starts groups for jobs that wait, ends those in their way, and frees what lost ones held.

        Raises:
            RunError: groups do not come up.
        """
        self._bury(look)
        if time.monotonic() < self._orphans_until:
            release_orphans()
        if time.monotonic() < self._not_before:
            return
        for resources, waiting in look.demand.items():
            free = [g for g in self._open() if g.resources == resources and g.number not in look.busy]
            for _ in range(waiting - len(free)):
                if len(self._open()) >= self._places(resources) and not self._make_room(look):
                    break
                self._start(resources)

    def close(self) -> None:
        """Lets all groups end after the jobs they have."""
        for group in self._groups:
            group.close()

    def join(self) -> None:
        """Waits for the end of all groups; those that do not end by themselves are killed after a while."""
        self._await(CLOSE_SECONDS)
        left = [group for group in self._groups if group.alive]
        for group in left:
            group.kill()
        self._await(KILL_SECONDS)
        end = time.monotonic() + (ORPHAN_SECONDS if left else 0.0)
        while not release_orphans() and time.monotonic() < end:
            time.sleep(0.2)

    def _await(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for group in self._groups:
            group.join(max(0.0, end - time.monotonic()))

    def _open(self) -> list[WorkerGroup]:
        return [group for group in self._groups if group.number not in self._closing]

    def _places(self, resources: Resources) -> int:
        return max(1, min(self._most, self._room(resources)))

    def _start(self, resources: Resources) -> None:
        name = f"{self._prefix}-{self._count}"
        self._groups.append(WorkerGroup(self._count, resources, self._dispatcher, self._storage, name))
        self._count += 1

    def _make_room(self, look: Look) -> bool:
        """Ends an idle group whose kind nobody waits for; whether there was one."""
        for group in self._open():
            if group.number not in look.busy and group.resources not in look.demand:
                self._closing.add(group.number)
                group.close()
                return True
        return False

    def _bury(self, look: Look) -> None:
        dead = [group for group in self._groups if not group.alive]
        self._groups = [group for group in self._groups if group.alive]
        if any(group.number in look.came for group in self._groups):
            self._absent = 0
        for group in dead:
            self._closing.discard(group.number)
            if group.error is None:
                continue
            self._orphans_until = time.monotonic() + ORPHAN_SECONDS
            if group.number in look.came:
                continue
            self._absent += 1
            self._not_before = time.monotonic() + ABSENT_SECONDS
            if self._absent == IN_A_ROW:
                raise RunError(f"workers do not come up: {group.error}")
