"""The optimizers in a plain torch loop: on modules that FSDP2 shards, and under DDP."""

import pytest
from support.full import full
from support.own_loops import reductions_per_step
from support.processes import Ranks

from lowland.optim.conformance import subjects
from lowland.optim.methods import METHODS
from lowland.trainers.optcheck.cases import DDP, FSDP2, Case
from lowland.trainers.optcheck.table import Trainings, examine
from lowland.trainers.optcheck.target import tried

pytestmark = pytest.mark.processes

SUMS = [name for name, method in METHODS.items() if method.sees == "sums"]
ALIKE = {"tam", "soap", "rotated_adam", "weight_sharing", "lookbehind", "schedule_free_sgd"}
"""Each goes the way of another one that is always tried."""


@pytest.fixture(scope="module")
def trainings(one: Ranks, two: Ranks) -> Trainings:
    return Trainings({1: one, 2: two})


@pytest.mark.parametrize("name", [full(name) if name in ALIKE else name for name in subjects()])
def test_a_loop_of_ones_own_equals_one_process(name: str, trainings: Trainings) -> None:
    cases = [
        Case(FSDP2, 2),
        Case(FSDP2, 2, features=frozenset(["groups", "tied"])),
        Case(FSDP2, 2, features=frozenset(["frozen"])),
        Case(DDP, 2, features=frozenset(["groups"])),
    ]
    cells = examine([(tried(name), case) for case in cases], trainings)
    assert [f"{c.case}: {c.distance:.1e} of {c.allowed:.1e} {c.error}" for c in cells if not c.exact] == []


@pytest.mark.parametrize("name", [SUMS[0], *map(full, SUMS[1:])])
def test_sums_take_one_message_per_step(name: str, two: Ranks) -> None:
    for counts in two(reductions_per_step, name, FSDP2):
        assert counts == [1, 1, 1]
    for counts in two(reductions_per_step, name, DDP):
        assert counts == [0, 0, 0], "each rank holds everything"
