"""Every optimizer of the tables ends where the unsharded training ends, at every ZeRO stage and world size."""

from collections import Counter
from itertools import product

import pytest
from support.processes import Ranks

from lowland.optim.conformance import subjects
from lowland.optim.methods import METHODS
from lowland.trainers.optcheck.cases import FEATURES, ZERO, Case, covering, every
from lowland.trainers.optcheck.table import EXACT, Cell, Trainings, examine
from lowland.trainers.optcheck.target import Target, tried

pytestmark = pytest.mark.processes

WORLDS = (1, 2, 4)
SLOTS = [{"name": name, "where": where} for name, where in product(subjects(), ZERO)]
FEW: dict[str, list[Case]] = {}
for slot, case in zip(SLOTS, covering(SLOTS, WORLDS), strict=True):
    FEW.setdefault(slot["name"], []).append(case)


@pytest.fixture(scope="module")
def trainings(one: Ranks, two: Ranks, four: Ranks) -> Trainings:
    return Trainings({1: one, 2: two, 4: four})


def shown(cell: Cell) -> str:
    return f"{cell.case}: {cell.distance:.1e} of {cell.allowed:.1e} {cell.error}"


@pytest.mark.parametrize("name", subjects())
def test_sharding_changes_nothing_but_rounding(name: str, trainings: Trainings, pytestconfig: pytest.Config) -> None:
    cases = every(WORLDS) if pytestconfig.getoption("--full") else FEW[name]
    cells = examine([(tried(name), case) for case in cases], trainings)
    assert [shown(cell) for cell in cells if not cell.exact] == []


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.sees != "elements"])
def test_the_same_method_per_fragment_is_another_method(name: str, trainings: Trainings) -> None:
    """What the layout is for; and that the table would show it."""
    cells = examine([(tried(name), Case(ZERO[stage], 2, naive=True)) for stage in (1, 3)], trainings)
    for cell in cells:
        assert cell.error or cell.distance > 30 * cell.allowed, shown(cell)


def test_elements_need_no_layout(trainings: Trainings) -> None:
    for cell in examine([(Target("adamw"), Case(ZERO[stage], 2, naive=True)) for stage in (1, 3)], trainings):
        assert cell.distance < EXACT


def test_what_a_step_accumulated_keeps_its_digits_between_ranks(trainings: Trainings) -> None:
    """Summed in bf16, the gradients of four ranks end further from the unsharded training than bf16 itself takes it."""
    cases = [Case(where, 4, bf16=True, features=frozenset(["accumulation"])) for where in ZERO[:2]]
    cells = examine([(Target("adamw"), case) for case in cases], trainings)
    assert [shown(cell) for cell in cells if not cell.exact] == []


def test_the_few_cases_meet_every_pair() -> None:
    names = ("where", "world", "bf16", *FEATURES)
    met: Counter[tuple[object, ...]] = Counter()
    for cases in FEW.values():
        for case in cases:
            values = [case.where, case.world, case.bf16, *(feature in case.features for feature in FEATURES)]
            met.update(product(zip(names, values, strict=True), repeat=2))
    possible = [(("where", where), ("world", world)) for where, world in product(ZERO, WORLDS)]
    possible += [(("where", where), (feature, True)) for where, feature in product(ZERO[1:], FEATURES)]
    possible += [
        ((a, x), (b, y)) for a, b in product(FEATURES, repeat=2) if a != b for x, y in product((False, True), repeat=2)
    ]
    possible += [(("bf16", bf16), (other, True)) for bf16, other in product((False, True), FEATURES)]
    assert [pair for pair in possible if not met[pair]] == []
