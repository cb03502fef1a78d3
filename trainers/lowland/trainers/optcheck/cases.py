"""The cases of the table, and few of them that meet every pair of circumstances."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal, get_args

__all__ = ["DDP", "FEATURES", "FSDP2", "ONE", "ZERO", "Case", "Feature", "covering", "every"]

ZERO = ("ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3")
FSDP2, DDP = "FSDP2", "DDP"
ONE = "one process"
Feature = Literal["accumulation", "clipping", "groups", "frozen", "tied", "offload"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
PROBLEM = {"clipping", "groups", "frozen", "tied"}
"""Features that change what is computed; the others only how."""


@dataclass(frozen=True)
class Case:
    """One short training."""

    where: str
    """`ONE`, one of `ZERO`, or a loop of one's own: `FSDP2`, `DDP`."""
    world: int = 1
    bf16: bool = False
    features: frozenset[Feature] = frozenset()
    naive: bool = False
    """Each fragment is taken for a parameter, as anyone's optimizer does who is not told otherwise."""
    micro_batches: int = 1
    """Without `accumulation`."""
    backwards: bool = False
    """Whether the batch's rows come in the opposite order."""

    @property
    def reference(self) -> "Case":
        """The same training unsharded, in one process."""
        return Case(ONE, bf16=self.bf16, features=frozenset(self.features & PROBLEM))

    @property
    def recuts(self) -> tuple["Case", ...]:
        """The reference with the batch cut or ordered otherwise: how far apart rounding alone takes it."""
        features = frozenset(self.features & PROBLEM)
        return tuple(
            Case(ONE, bf16=self.bf16, features=features, micro_batches=parts, backwards=backwards)
            for parts, backwards in ((2, False), (4, False), (8, False), (1, True), (4, True))
        )

    def __str__(self) -> str:
        world = f", {self.world} processes" if self.world > 1 else ""
        return ", ".join([self.where + world, "bf16" if self.bf16 else "fp32", *sorted(self.features)])


Factors = dict[str, object]
"""What a case is made of, each by itself: `where`, `world`, `bf16`, and every feature; maybe who is tried."""


def every(worlds: Sequence[int]) -> list[Case]:
    """Each ZeRO stage, world size and type, with no feature, each alone, and all at once."""
    found = []
    for where, world, bf16 in product(ZERO, worlds, (False, True)):
        possible = frozenset(feature for feature in FEATURES if feature != "offload" or where != ZERO[0])
        choices = [
            frozenset[Feature](),
            *(frozenset([feature]) for feature in FEATURES if feature in possible),
            possible,
        ]
        found += [Case(where, world, bf16, features) for features in choices]
    return found


def covering(slots: Sequence[Factors], worlds: Sequence[int]) -> list[Case]:
    """A case for each slot, chosen so that, over all, as many pairs of factors meet as can.

    Args:
        slots: for each case the factors that are given, besides maybe others that are no case's, such as a name.
        worlds: sizes to choose from.
    """
    met: set[tuple[tuple[str, object], tuple[str, object]]] = set()
    found = []
    for slot in slots:
        # Values seldom chosen so far come first among equals.
        best = max(_completions(slot, worlds), key=lambda factors: len(_pairs(factors) - met))
        met |= _pairs(best)
        features = frozenset(feature for feature in FEATURES if best[feature])
        found.append(Case(str(best["where"]), int(str(best["world"])), bool(best["bf16"]), features))
    return found


def _completions(slot: Factors, worlds: Sequence[int]) -> Iterator[Factors]:
    free: Factors = {"where": ZERO, "world": worlds, "bf16": (False, True), **dict.fromkeys(FEATURES, (False, True))}
    choices = [[slot[name]] if name in slot else list(values) for name, values in free.items()]  # type: ignore[call-overload]
    for values in product(*choices):
        factors = {**slot, **dict(zip(free, values, strict=True))}
        if not (factors["offload"] and factors["where"] == ZERO[0]):
            yield factors


def _pairs(factors: Factors) -> set[tuple[tuple[str, object], tuple[str, object]]]:
    return set(combinations(sorted(factors.items(), key=lambda item: item[0]), 2))
