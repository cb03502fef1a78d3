"""Points of a space from recipes that were written down: which parameters make these fields, and what differs."""

import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import yaml

from lowland.platform.recipe.mistakes import flow
from lowland.platform.tracking.run import LONGEST
from lowland.search_spaces import Branch, Choice, Entry, Fixed, FloatRange, IntegerRange, Key, Space, Unbounded
from lowland.trainers.recipe import Amount

ELSEWHERE = ("name", "storage", "scaling", "sharding", "checkpoints", "tracking")
"""Sections of a recipe that change where and how a training runs, not what it comes to."""
UNIMPORTANT = ("seed", "log_every", "evaluation.every", "evaluation.micro_batch")
FREE_BRANCHES = 64
"""Combinations of alternatives that no field names, of which one should be what was trained."""
_PLAIN = re.compile(r"(?<=[\[{ ])([*&!%@`|>][^,\]}]*)(?=[,\]}])")
"""Text that `flow` leaves without the quotes that YAML wants, as `*`."""
Fields = Mapping[str, str]
"""A recipe by dotted path, as text."""


def located(space: Space, fields: Fields) -> list[dict[str, Any]]:
    """The parameters that make these fields, as far as they are found; more than one if a branch drives no field."""
    found: list[dict[str, Any]] = [{}]
    for entry in space.entries():
        if not isinstance(entry.parameter, Fixed):
            found = list(islice(_extended(found, entry, fields), FREE_BRANCHES))
    return found


def _extended(found: list[dict[str, Any]], entry: Entry, fields: Fields) -> Iterator[dict[str, Any]]:
    for parameters in found:
        values = _values(entry, fields) if entry.active(parameters) else []
        yield from ({**parameters, entry.name: value} for value in values) if values else iter([parameters])


def _values(entry: Entry, fields: Fields) -> list[Any]:
    """What the parameter may have been."""
    match entry.parameter:
        case Branch(alternatives=alternatives) if entry.paths:
            return [name for name in alternatives if fields.get(entry.key) == name]
        case Branch(alternatives=alternatives):
            return list(alternatives)
        case Choice(values=values):
            there = _field(fields, entry.paths[0])
            return [value for value in values if there is not None and _same(str(there), _written(value))]
        case FloatRange() | IntegerRange() | Unbounded():
            there = _field(fields, entry.paths[0])
            value = _searched(entry, str(there)) if there is not None else None
            return [] if value is None else [value]
    return []


def _written(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else flow(value)


def _field(fields: Fields, path: str) -> Any:
    """A field; also one in a list, which is written as a whole."""
    if path in fields:
        return fields[path]
    parts = path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        if (text := fields.get(".".join(parts[:depth]))) is not None:
            value = _parsed(text)
            for key in parts[depth:]:
                try:
                    value = value[int(key) if isinstance(value, list) else key]
                except (KeyError, IndexError, TypeError, ValueError):
                    return None
            return value
    return None


def _searched(entry: Entry, text: str) -> float | int | None:
    """A field's value on the parameter's scale."""
    parameter = entry.parameter
    assert isinstance(parameter, FloatRange | IntegerRange | Unbounded)
    value: float | None
    if parameter.unit is None:
        value = _number(text)
    else:
        try:
            amount = Amount.parse(text)
        except ValueError:
            return None
        value = amount.value if amount.unit == parameter.unit else None
    searched = Key.parse(entry.key).searched_value(value) if value is not None else None
    if searched is None:
        return None
    if isinstance(parameter, Unbounded):
        whole, ends = parameter.multiple is not None, parameter.ends
    else:
        whole, ends = isinstance(parameter, IntegerRange), (parameter.low, parameter.high)
    if whole and math.isclose(searched, round(searched), abs_tol=1e-6):
        return round(searched)
    for end in ends:
        if math.isclose(searched, end, rel_tol=1e-9, abs_tol=1e-12):
            return end
    return searched


def differences(here: Fields, there: Fields) -> list[str]:
    """Paths of fields that make two recipes different trainings.

    A field that only one of two versions of lowland knows is none; one that a section has and null has not, is.
    """
    missing = [path for path in {*here, *there} if not (path in here and path in there) and _cut(path, here, there)]
    unequal = [path for path in here.keys() & there.keys() if not _same(here[path][:LONGEST], there[path][:LONGEST])]
    return sorted(path for path in {*missing, *unequal} if _matters(path, here))


def _cut(path: str, here: Fields, there: Fields) -> bool:
    """Whether the other side has a section where this one has a value, or the other way round."""
    other = there if path in here else here
    parts = path.split(".")
    above = any(".".join(parts[:depth]) in other for depth in range(1, len(parts)))
    return above or any(name.startswith(f"{path}.") for name in other)


def _matters(path: str, here: Fields) -> bool:
    if path == "scaling.workers" or path == "batch.micro_batch":
        wholes = ("global_sequences", "global_tokens", "global_images")
        return all(here.get(f"batch.{name}", "null") == "null" for name in wholes)
    return path.split(".")[0] not in ELSEWHERE and path not in UNIMPORTANT


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = _number(one), _number(other)
    if first is not None and second is not None:
        return math.isclose(first, second, rel_tol=1e-9)
    if one.startswith("[") and other.startswith("["):
        lists = _parsed(one), _parsed(other)
        return None not in lists and _alike(*lists)
    return False


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return _same(str(one), str(other))


def _parsed(text: str) -> Any:
    """A list or section as `flow` writes it; None if it cannot be read, as one that was cut."""
    try:
        return yaml.safe_load(_PLAIN.sub(r"'\1'", text))
    except yaml.YAMLError:
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
