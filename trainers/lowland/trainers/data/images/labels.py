"""From what is written beside an image to the number of its class or group."""

from collections.abc import Iterable, Sequence

from lowland.trainers.data.images.sources import Value
from lowland.trainers.errors import DataError

EXAMPLES = 5
"""Values that a message shows."""


class Names:
    """The classes or groups of a training, in the order of their numbers."""

    def __init__(self, names: Sequence[str], *, numbered: bool) -> None:
        self.names = tuple(names)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._numbered = numbered

    def __len__(self) -> int:
        return len(self.names)

    def number(self, value: Value) -> int | None:
        """The number of a value as it is written; None if it is none of them.

        Whole numbers are the numbers of classes themselves if they are `numbered`; else they are names.
        """
        if isinstance(value, int) and self._numbered:
            return value if 0 <= value < len(self.names) else None
        return self._numbers.get(str(value))


def class_names(labels: Sequence[Value], named: tuple[str, ...] | None, count: int | None, place: str) -> Names:
    """The classes of training labels.

    Args:
        labels: as they are written; missing and negative ones are left out of account.
        named: what the data calls its classes.
        count: how many there are to be; None takes the names', or the largest label and one.
        place: for messages.

    Raises:
        DataError: numbers and names are mixed, there are fewer than two classes, or not as many as `count`.
    """
    found = _one_type(labels, place, "labels")
    if named is None and found and isinstance(next(iter(found)), str):
        named = tuple(sorted(map(str, found)))
    if named is None:
        numbers = [value for value in found if isinstance(value, int)]
        named = tuple(map(str, range(count if count is not None else max(numbers, default=-1) + 1)))
    if count is not None and count != len(named):
        raise DataError(f"data.classes = {count}, but {place} names {len(named)} classes: remove data.classes")
    if len(named) < 2:
        raise DataError(f"{place}: {len(named)} classes; a classifier needs at least two")
    return Names(named, numbered=True)


def group_names(values: Iterable[Value], place: str) -> Names:
    """The groups of training and held-out images together; numbers are names here."""
    _one_type(values, place, "groups")
    found = {value for value in values if value is not None}
    return Names(
        [str(value) for value in sorted(found, key=lambda value: (isinstance(value, str), value))], numbered=False
    )


def _one_type(values: Iterable[Value], place: str, what: str) -> set[int | str]:
    found = {value for value in values if value is not None}
    if len({type(value) for value in found}) > 1:
        some = ", ".join(repr(value) for value in sorted(found, key=repr)[:EXAMPLES])
        raise DataError(f"{place}: some {what} are numbers and some are names ({some}); write all alike")
    return found
