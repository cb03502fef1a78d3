"""What was found of an optimizer, as a page for people and as a file that a recipe can name."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from lowland.optim.conformance import Result, Sight, conformance, sight
from lowland.trainers.optcheck.cases import FSDP2, ZERO, Case, Factors, covering
from lowland.trainers.optcheck.table import Call, Cell, Trainings, examine
from lowland.trainers.optcheck.target import Target

__all__ = ["WORLDS", "Certificate", "certify", "source_digest"]

WORLDS = (1, 2)
FSDP2_CASES = (
    Case(FSDP2, 2),
    Case(FSDP2, 2, features=frozenset(["groups"])),
    Case(FSDP2, 2, features=frozenset(["frozen", "tied"])),
)


@dataclass(frozen=True)
class Certificate:
    """The outcome of every check and every case of one optimizer."""

    target: Target
    sight: Sight
    conformance: list[Result]
    cells: list[Cell]

    @property
    def exact(self) -> bool:
        """Whether no case ended elsewhere than unsharded."""
        return all(cell.exact for cell in self.cells)

    @property
    def passed(self) -> bool:
        """Whether it is exact and conforms."""
        return self.exact and all(result.passed for result in self.conformance)

    def cells_by_place(self) -> dict[str, list[Cell]]:
        """By ZeRO stage or FSDP2 and world size, such as `ZeRO 2, world 4`."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(f"{cell.case.where}, world {cell.case.world}", []).append(cell)
        return found

    def reason(self) -> str:
        """Why some case is not exact, and the way out; empty if all are."""
        if self.exact:
            return ""
        for cell in self.cells:
            if cell.error:
                return f"{cell.case}: {cell.error}"
        if self.sight.sees == "tensors" and not self.target.whole:
            return f"{self.sight.reason}; use `sees: tensors` (here: --sees tensors), which gives it whole tensors"
        if self.sight.sees == "model":
            return f"{self.sight.reason}; take the sums through a Layout (docs/how-to/add-an-optimizer.md)"
        worst = max(self.cells, key=lambda cell: cell.distance / cell.allowed)
        return f"{worst.case}: {worst.distance:.1e} of the update apart, where rounding alone makes {worst.allowed:.1e}"

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "target": self.target.name,
            "arguments": self.target.arguments,
            # What a recipe may rely on: fragments suffice only if that was seen everywhere.
            "sees": "elements" if self.sight.sees == "elements" and self.exact else "tensors",
            "version": version("lowland"),
            "file digest of the source of the class": source_digest(self.target),
            "verdicts": {place: _verdict(cells) for place, cells in self.cells_by_place().items()},
            "conformance": {result.check: result.reason or "passed" for result in self.conformance},
            "exact": self.exact,
            "reason": self.reason(),
        }

    def write(self, path: Path) -> None:
        """Writes the document."""
        path.write_text(json.dumps(self.document(), indent=2) + "\n", encoding="utf-8")


def certify(target: Target, groups: Mapping[int, Call], told: Callable[[int, int], None] | None = None) -> Certificate:
    """Puts an optimizer through the suite and through short trainings at every ZeRO stage and on FSDP2.

    Args:
        target: the optimizer.
        groups: for world sizes 1 and 2 what calls a function on all processes of such a group.
        told: is told how many trainings are done, and of how many.

    Raises:
        UserError: there is no such optimizer.
    """
    subject = target.subject()
    results, seen = conformance(subject), sight(subject)
    places: list[Factors] = [
        {"where": where, "world": world, "bf16": bf16} for where, world, bf16 in product(ZERO, WORLDS, (False, True))
    ]
    jobs = [(target, case) for case in [*covering(places, WORLDS), *FSDP2_CASES]]
    return Certificate(target, seen, results, examine(jobs, Trainings(groups, told)))


def source_digest(target: Target) -> str:
    """SHA-256 of the file that holds the class; a recipe's certificate is of this file and no other."""
    file = inspect.getsourcefile(target.optimizer_class())
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _verdict(cells: list[Cell]) -> dict[str, Any]:
    worst = max(cells, key=lambda cell: cell.distance / cell.allowed)
    return {
        "exact": all(cell.exact for cell in cells),
        # JSON has no infinity.
        "distance": worst.distance if worst.distance < float("inf") else None,
        "allowed": worst.allowed,
        "case": str(worst.case),
    } | ({"error": worst.error} if worst.error else {})
