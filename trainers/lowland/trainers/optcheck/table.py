"""How far a sharded training ends from the unsharded one, case by case, and how far is too far."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowland.optim.conformance import sight
from lowland.optim.methods import METHODS
from lowland.trainers.errors import RunError
from lowland.trainers.optcheck.cases import Case
from lowland.trainers.optcheck.target import Target
from lowland.trainers.optcheck.training import Trained, train_all

__all__ = ["EXACT", "Cell", "Trainings", "examine"]

EXACT = 1e-5
"""Distance in fp32, relative to the update, worst tensor, that a sum in another order may make."""
ROOM = 2
"""By how much two measurements of the same rounding may differ."""
ADAMW = Target("adamw")

Job = tuple[Target, Case]
Call = Callable[..., list[Any]]
"""Calls a function on every rank of a process group; their results."""


@dataclass(frozen=True)
class Cell:
    """One case of one optimizer."""

    target: Target
    case: Case
    distance: float
    """From the weights of the unsharded training, relative to the update; of the worst tensor; inf if it failed."""
    noise: float | None
    """The same distance, the largest, between cuts and orders of the batch in one process; None if not measured."""
    allowed: float
    error: str = ""

    @property
    def exact(self) -> bool:
        """Whether sharding changes no more than rounding does."""
        return self.distance <= self.allowed


class Trainings:
    """Runs trainings in process groups, each once.

    Args:
        groups: by number of processes, what calls a function on all of them.
        told: is told how many trainings are done, and of how many.
    """

    def __init__(self, groups: Mapping[int, Call], told: Callable[[int, int], None] | None = None) -> None:
        self._groups, self._told = groups, told
        self._done: dict[tuple[str, Case], Trained] = {}

    def run(self, jobs: Iterable[Job]) -> None:
        """Runs those that were not run before, those of one optimizer and one size in one call."""
        calls: dict[tuple[int, str], list[Job]] = {}
        for target, case in jobs:
            if _key(target, case) not in self._done:
                calls.setdefault((case.world, repr(target)), []).append((target, case))
        total, count = sum(map(len, calls.values())), 0
        for (world, _), waiting in calls.items():
            unique = list({_key(*job): job for job in waiting}.values())
            for job, trained in zip(unique, self._call(world, unique), strict=True):
                self._done[_key(*job)] = trained
            count += len(waiting)
            if self._told is not None:
                self._told(count, total)

    def of(self, target: Target, case: Case) -> Trained:
        """What came of a training that was run."""
        return self._done[_key(target, case)]

    def _call(self, world: int, jobs: Sequence[Job]) -> list[Trained]:
        try:
            found: list[Trained] = self._groups[world](train_all, jobs)[0]
        except RunError as error:
            if len(jobs) == 1:
                return [Trained(error=str(error).strip().splitlines()[-1])]
            return [trained for job in jobs for trained in self._call(world, [job])]
        return found


def examine(jobs: Sequence[Job], trainings: Trainings) -> list[Cell]:
    """Trains every case, its reference, and what rounding alone makes of that, and compares."""
    amplifies = {target.name: _amplifies_rounding(target) for target, _ in jobs}
    references = [(target, case.reference) for target, case in jobs]
    recuts = [
        (target, recut) for target, case in jobs if _needs_noise(case, amplifies[target.name]) for recut in case.recuts
    ]
    yardsticks = [(ADAMW, other) for _, case in jobs if case.bf16 for other in (case.reference, *case.recuts)]
    trainings.run([*yardsticks, *references, *recuts, *jobs])
    return [_cell(target, case, trainings, amplifies[target.name]) for target, case in jobs]


def _needs_noise(case: Case, amplifies: bool) -> bool:
    """Whether the limit depends on it; and where nothing else is changed it is shown beside."""
    return case.bf16 or amplifies or not case.features


def _cell(target: Target, case: Case, trainings: Trainings, amplifies: bool) -> Cell:
    reference, found = trainings.of(target, case.reference), trainings.of(target, case)
    noise, allowed = None, EXACT
    if _needs_noise(case, amplifies):
        noise = _noise(target, case, trainings)
        allowed = max(EXACT, ROOM * noise) if amplifies else EXACT
        if case.bf16:
            allowed = ROOM * max(noise, _noise(ADAMW, case, trainings))
    return Cell(target, case, _distance(found, reference), noise, allowed, found.error or reference.error)


def _noise(target: Target, case: Case, trainings: Trainings) -> float:
    reference = trainings.of(target, case.reference)
    return max(_distance(trainings.of(target, recut), reference) for recut in case.recuts)


def _amplifies_rounding(target: Target) -> bool:
    """Whether by nature: factorisations and orthogonalisation divide by what may be small; sums and elements do not."""
    row = METHODS.get(target.name)
    return (row.sees if row else sight(target.subject()).sees) == "tensors"


def _distance(found: Trained, reference: Trained) -> float:
    if found.error or reference.error:
        return float("inf")
    # A loop of one's own has no evaluation weights to compare.
    pairs = [(update, reference.updates[name]) for name, update in found.updates.items()]
    distances = [float(np.linalg.norm(update - right) / np.linalg.norm(right)) for update, right in pairs]
    # A NaN is as far off as can be, and max would let it pass.
    return max((distance if distance == distance else float("inf")) for distance in distances)


def _key(target: Target, case: Case) -> tuple[str, Case]:
    return repr(target), case
