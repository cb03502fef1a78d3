"""The groups of workers of a search: as many as there is work for, of the kinds that are asked for."""

import time
from typing import Any

from lowland.platform.search.dispatcher import Look
from lowland.platform.search.group import WorkerGroup
from lowland.platform.search.jobs import Resources
from lowland.trainers.errors import RunError

IN_A_ROW = 3
"""Groups lost one after another without a job done, after which the search ends."""
CLOSE_SECONDS = 30.0


class Pool:
    """Starts and ends groups.

    Args:
        dispatcher: the actor.
        storage: folder for Ray's files.
        most: groups at a time.
    """

    def __init__(self, dispatcher: Any, storage: str, most: int) -> None:
        self._dispatcher, self._storage, self._most = dispatcher, storage, most
        self._groups: list[WorkerGroup] = []
        self._closing: set[int] = set()
        self._count = 0
        self._prefix = f"groups-{time.time_ns()}"
        self._lost, self._served = 0, 0

    def tend(self, look: Look) -> None:
        """Starts groups for jobs that wait, and ends those in their way.

        Raises:
            RunError: groups do not come up.
        """
        self._bury(look)
        for resources, waiting in look.demand.items():
            free = [g for g in self._open() if g.resources == resources and g.number not in look.busy]
            for _ in range(waiting - len(free)):
                if len(self._open()) >= self._most and not self._make_room(look):
                    break
                self._start(resources)

    def close(self) -> None:
        """Lets all groups end after the jobs they have."""
        for group in self._groups:
            group.close()

    def join(self) -> None:
        """Waits for the end of all groups, for a while."""
        end = time.monotonic() + CLOSE_SECONDS
        for group in self._groups:
            group.join(max(0.0, end - time.monotonic()))

    def _open(self) -> list[WorkerGroup]:
        return [group for group in self._groups if group.number not in self._closing]

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
        if look.served > self._served:
            self._lost, self._served = 0, look.served
        for group in dead:
            self._closing.discard(group.number)
            if group.error is not None:
                self._lost += 1
                if self._lost == IN_A_ROW:
                    raise RunError(f"workers do not come up: {group.error}")
