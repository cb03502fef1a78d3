"""Groups of workers: as many as there is work and room for, others in place of those that are lost."""

from typing import Any

import pytest

from lowland.platform.search import pool as module
from lowland.platform.search.dispatcher import Look
from lowland.platform.search.jobs import Resources
from lowland.platform.search.pool import IN_A_ROW, Pool
from lowland.platform.search.workers import room
from lowland.trainers.errors import RunError

ONE = Resources(1, 1.0, 0, None, "PACK")
TWO = Resources(2, 1.0, 0, None, "PACK")


class Group:
    """A group of which only the pool's view is there."""

    made: list["Group"]

    def __init__(self, number: int, resources: Resources, *_: Any) -> None:
        self.number, self.resources = number, resources
        self.alive, self.error, self.closed, self.killed = True, None, False, False
        self.made.append(self)

    def close(self) -> None:
        self.closed = True

    def join(self, timeout: float) -> bool:
        return not self.alive

    def kill(self) -> None:
        self.killed, self.alive = True, False

    def loses(self, why: str) -> None:
        self.alive, self.error = False, why


class World:
    """A pool, its groups, and how often it freed what lost ones held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 4, room: int = 4) -> None:
        self.room, self.freed = room, 0
        monkeypatch.setattr(module, "WorkerGroup", Group)
        monkeypatch.setattr(module, "release_orphans", self._free)
        monkeypatch.setattr(module, "ABSENT_SECONDS", 0.0)
        monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
        Group.made = []
        self.pool = Pool(None, "", most, lambda _: self.room)

    def _free(self) -> int:
        self.freed += 1
        return 1

    def tend(self, demand: dict[Resources, int], busy: set[int] = frozenset(), came: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.pool.tend(Look(demand, frozenset(busy), {}, frozenset(came), ()))

    def never_comes_up(self) -> None:
        for _ in range(IN_A_ROW):
            Group.made[-1].loses("no node has room")
            self.tend({ONE: 1}, came={0})

    @property
    def open(self) -> list[int]:
        return [group.number for group in Group.made if group.alive and not group.closed]


def test_groups_are_as_many_as_jobs_wait_and_the_cluster_has_room_for(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, most=3, room=2)
    world.tend({ONE: 5})
    assert world.open == [0, 1]
    world.room = 9
    world.tend({ONE: 5}, busy={0, 1}, came={0, 1})
    assert world.open == [0, 1, 2], "a node came, and no more than were asked for"
    world.tend({ONE: 1}, busy={0, 1}, came={0, 1, 2})
    assert world.open == [0, 1, 2], "one is free"
    world.tend({TWO: 1}, busy={0, 1}, came={0, 1, 2})
    assert world.open == [0, 1, 3], "it makes room for another kind"


def test_groups_that_start_before_there_are_jobs_are_those_that_jobs_get(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, most=3, room=2)
    world.pool.begin(ONE, 3)
    assert world.open == [0, 1], "no more than there is room for"
    world.tend({ONE: 2})
    assert world.open == [0, 1], "they come up already"
    world.tend({TWO: 1}, came={0, 1})
    assert world.open == [1, 2], "one makes room where another kind is asked for"


def test_lost_groups_are_replaced_however_often_and_what_they_held_is_freed(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, most=1)
    for number in range(3 * IN_A_ROW):
        world.tend({ONE: 1}, came=set(range(number)))
        assert world.open == [number]
        Group.made[number].loses("the worker of rank 0 died")
    world.tend({ONE: 1}, came=set(range(3 * IN_A_ROW)))
    assert world.freed


def test_groups_that_never_come_up_end_the_search_unless_another_one_is_up(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, most=2, room=2)
    world.tend({ONE: 1})
    for _ in range(2 * IN_A_ROW):
        world.tend({ONE: 1}, busy={0}, came={0})
        Group.made[-1].loses("no node has room")
    Group.made[0].loses("the worker of rank 0 died")
    world.tend({ONE: 1}, came={0})
    with pytest.raises(RunError, match="workers do not come up: no node has room"):
        world.never_comes_up()


def test_groups_that_do_not_end_by_themselves_are_killed(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, most=2, room=2)
    world.tend({ONE: 2})
    Group.made[0].alive = False
    world.pool.close()
    world.pool.join()
    assert [group.killed for group in Group.made] == [False, True]
    assert all(group.closed for group in Group.made)
    assert world.freed


@pytest.mark.parametrize(
    ("asks", "fit"),
    [
        (Resources(1, 1.0, 0.25, None, "PACK"), 8),
        (Resources(1, 2.0, 0.25, None, "PACK"), 5),
        (Resources(1, 1.0, 0.7, None, "PACK"), 2),
        (Resources(2, 1.0, 1, None, "PACK"), 1),
        (Resources(1, 3.0, 0, None, "PACK"), 3),
        (Resources(1, 99.0, 0, None, "PACK"), 1),
    ],
)
def test_as_many_trainings_at_once_as_the_cluster_has_room_for(monkeypatch, asks, fit):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 10.0, "GPU": 2.0})
    assert room(asks) == fit
