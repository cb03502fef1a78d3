"""What a copy of a training may do differently: parameters that may change while weights and state stay."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from lowland.platform.search.space import BoundSpace
from lowland.search_spaces import Entry, FloatRange, Unbounded
from lowland.trainers.errors import UserError

SECTIONS = ("optimizer", "schedule")
"""Sections of a recipe whose numbers may change during a training; all others say what is trained, and on what."""
REDRAWN = 0.25
"""Probability with which a parameter is drawn anew instead of moved."""
FACTOR, PART = 1.25, 0.1
"""How far one is moved: by a factor where ratios matter, else by a part of its range."""
ATTEMPTS = 64


class Explorer:
    """Makes a copy's parameters of its parent's (`explore` of arXiv 1711.09846).

    Each parameter that may change is drawn anew with probability 1/4, else moved up or down: by a factor of 1.25 if its
    range is logarithmic, by a tenth of its range if not; what leads out of the range is reflected.  All others stay,
    since weights are of one model and their state is of one optimizer: whole numbers, choices and branches, and
    numbers outside of `optimizer` and `schedule`.

    Args:
        space: the search's.
        names: of the parameters to change; all that may if empty.

    Raises:
        UserError: one of them may not change during a training, or none of the space may.
    """

    def __init__(self, space: BoundSpace, names: Sequence[str] = ()) -> None:
        entries = {entry.name: entry for entry in space.space.entries()}
        may = [name for name, entry in entries.items() if why_fixed(entry) is None]
        for name in names:
            if name not in entries:
                raise UserError(f"--perturb {name}: the space has no such parameter; may change: {_listed(may)}")
            if (why := why_fixed(entries[name])) is not None:
                raise UserError(f"--perturb {name}: {why}; may change: {_listed(may)}")
        if not may:
            raise UserError(
                "--policy pbt: no parameter of the space may change during a training, so that copies would do what "
                f"their parents do; add a number of {' or '.join(SECTIONS)}, as optimizer.lr, or choose another policy"
            )
        self._space, self._entries = space, [entries[name] for name in names or may]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that change."""
        return tuple(entry.name for entry in self._entries)

    def __call__(self, parameters: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
        """A copy's parameters; the parent's own if 64 attempts break the space's constraints."""
        for _ in range(ATTEMPTS):
            found = dict(parameters)
            for entry in self._entries:
                if entry.active(parameters) and entry.name in found:
                    assert isinstance(entry.parameter, FloatRange)
                    found[entry.name] = moved(entry.parameter, found[entry.name], generator)
            if self._space.allowed(found):
                return found
        return dict(parameters)


def why_fixed(entry: Entry) -> str | None:
    """Why a parameter may not change during a training; None if it may."""
    outside = [path for path in entry.paths if path.split(".")[0] not in SECTIONS]
    if outside:
        section = outside[0].split(".")[0]
        return f"a copy goes on with its parent's weights and data, so that its {section} cannot change"
    if isinstance(entry.parameter, Unbounded):
        return "it has no range that a copy's value could be drawn from; give it low and high"
    if not isinstance(entry.parameter, FloatRange):
        return f"a copy goes on with its parent's optimizer state, so that a {entry.parameter.type} cannot change"
    return None


def moved(range_: FloatRange, value: float, generator: random.Random) -> float:
    """A value of the range near another one, or by chance any."""
    low, high = range_.low, range_.high
    if generator.random() < REDRAWN:
        drawn = generator.random()
        new = low * (high / low) ** drawn if range_.log else low + drawn * (high - low)
    elif range_.log:
        factor = generator.choice((FACTOR, 1 / FACTOR))
        new = value * factor if low <= value * factor <= high else value / factor
    else:
        step = max(PART * (high - low), range_.step or 0.0) * generator.choice((1, -1))
        new = value + step if low <= value + step <= high else value - step
    if range_.step is not None:
        new = low + range_.step * round((new - low) / range_.step)
    return min(max(new, low), high)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
