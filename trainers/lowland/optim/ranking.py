"""Which tensors of the past a buffer of few slots keeps: those of highest priority, which decays."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Ranking", "Turn"]


@dataclass(frozen=True)
class Turn:
    """What a step finds in a buffer, and where its newcomer goes."""

    filled: int
    """Slots that hold something before the newcomer: the first so many."""
    slot: int | None
    """The newcomer's; None if it is turned away."""


class Ranking:
    """The priorities of what lies in the slots of several buffers, each by a name.

    A newcomer takes the next free slot, then that of the lowest priority, the first of several, if its own is higher:

        slot = argmin_c k_c   if k > min_c k_c, else none;    then k_c <- decay k_c for all, the newcomer's too

    Args:
        size: slots of a buffer.
        decay: factor on every priority after each step.
    """

    def __init__(self, size: int, decay: float) -> None:
        self._size, self._decay = size, decay
        self._priorities: dict[str, list[float]] = {}

    def take(self, buffer: str, priority: float) -> Turn:
        """Ranks a newcomer of a buffer."""
        kept = self._priorities.setdefault(buffer, [])
        turn = Turn(len(kept), self._slot(kept, priority))
        if turn.slot == len(kept):
            kept.append(priority)
        elif turn.slot is not None:
            kept[turn.slot] = priority
        kept[:] = [self._decay * value for value in kept]
        return turn

    def priorities(self, buffer: str) -> list[float]:
        """By filled slot."""
        return list(self._priorities.get(buffer, []))

    def state(self) -> dict[str, float]:
        """Every priority by `slot/buffer`; a slot that is not there is empty."""
        return {
            f"{slot}/{buffer}": priority
            for buffer, kept in self._priorities.items()
            for slot, priority in enumerate(kept)
        }

    def load(self, state: Mapping[str, float]) -> None:
        """Restores `state`."""
        self._priorities = {}
        by_slot = sorted((int(slot), buffer, key) for key in state for slot, _, buffer in [key.partition("/")])
        for _, buffer, key in by_slot:
            self._priorities.setdefault(buffer, []).append(state[key])

    def _slot(self, kept: list[float], priority: float) -> int | None:
        if len(kept) < self._size:
            return len(kept)
        lowest = min(kept)
        return kept.index(lowest) if priority > lowest else None
