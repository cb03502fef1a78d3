"""The numbers in a recipe's data, for conditions between fields."""

from collections.abc import Iterator, Mapping
from typing import Any

from lowland.trainers.recipe import Amount


def numbers(data: Any) -> dict[str, float]:
    """By dotted path every number, and of amounts their number without the unit."""
    return dict(_numbers(data, ""))


def number(value: Any) -> float | None:
    """A value as a number, of an amount that without its unit; None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        try:
            return Amount.parse(value).value
        except ValueError:
            return None
    return None


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _numbers(item, f"{path}.{key}" if path else str(key))
    if (found := number(value)) is not None:
        yield path, found
