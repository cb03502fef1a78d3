"""A search space held against a recipe before the first trial: fields that there are, values that they can have.

Each parameter is tried at the ends of its range, or at each of its values, in the alternative that it belongs to and
with all others at a typical value; whether values go together is a question for whole trials.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from lowland.platform.recipe import Recipe, read_recipe
from lowland.platform.recipe.document import Document
from lowland.platform.recipe.mistakes import Mistake, Path, Value, dotted, flow, nearest
from lowland.platform.recipe.translate import translate
from lowland.platform.search.changes import changed, schema_for, schema_of, split
from lowland.platform.search.numbers import number
from lowland.platform.search.space_files import SpaceFile
from lowland.search_spaces import Branch, Choice, Constraint, Entry, Fixed, FloatRange, IntegerRange, Key, Unbounded
from lowland.trainers.errors import RecipeError
from lowland.trainers.recipe import Amount

_STRUCTURE = {"extra_forbidden", "model_type", "model_attributes_type", "union_tag_invalid", "union_tag_not_found"}
"""Mistakes of a section that are about which fields there are, not about whether their values go together."""

Probe = tuple[str, Any]
"""Which of a parameter's own fields gives a value, or `between` its ends; and the value that is searched."""


def find_mistakes(file: SpaceFile, recipe: Recipe) -> list[Mistake]:
    """Fields that the recipe does not have and values that they cannot have, each with its place."""
    entries, found = _leading_somewhere(file, recipe)
    found += [mistake for entry in entries for mistake in _of_entry(entry, entries, file, recipe)]
    found += [*_of_constraints(file, entries, recipe), *_of_recipe(file, entries, recipe)]
    order = {place: index for index, place in enumerate(dict.fromkeys(file.places.values()))}
    once = {(m.place, m.path, m.text): m for m in found}.values()
    return sorted(once, key=lambda mistake: order.get(mistake.place, -1))


def typical_fields(entries: list[Entry], where: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a trial with typical values, in the given alternatives and else in the first ones."""
    parameters: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for entry in entries:
        if entry.active(parameters):
            parameters[entry.name] = where.get(entry.name, typical(entry))
            fields |= dict.fromkeys(entry.paths, entry.field_value(parameters[entry.name]))
    return fields


def typical(entry: Entry) -> Any:
    """The middle of a range on its scale, the first of several."""
    match entry.parameter:
        case FloatRange(low=low, high=high, log=log, step=step):
            middle = (low * high) ** 0.5 if log else low + 0.382 * (high - low)
            return middle if step is None else low + step * round((middle - low) / step)
        case IntegerRange(low=low, high=high, log=log, step=step):
            return round((low * high) ** 0.5) if log else low + step * ((high - low) // step // 2)
        case Unbounded(centre=centre):
            return entry.parameter.nearest(centre)
        case Choice(values=values):
            return values[0]
        case Branch(alternatives=alternatives):
            return next(iter(alternatives))
        case Fixed(value=value):
            return value


def _probes(entry: Entry) -> Iterator[Probe]:
    match entry.parameter:
        case FloatRange(low=low, high=high) | IntegerRange(low=low, high=high):
            yield from (("low", low), ("high", high), ("between", typical(entry)))
        case Unbounded(start=(low, high)):
            yield from (("centre", typical(entry)), ("factor", low), ("factor", high))
            yield "between", entry.parameter.nearest((low**2 * high) ** (1 / 3))
        case Choice(values=values):
            yield from (("values", value) for value in values)
        case Branch(alternatives=alternatives):
            yield from (("alternatives", name) for name in alternatives)
        case Fixed(value=value):
            yield "value", value


def _leading_somewhere(file: SpaceFile, recipe: Recipe) -> tuple[list[Entry], list[Mistake]]:
    """The parameters whose paths do not lead into values or beyond the end of lists, and mistakes for the others."""
    good, found = list[Entry](), list[Mistake]()
    for entry in file.space.entries():
        try:
            changed(recipe, typical_fields([*good, entry], dict(entry.where)))
        except RecipeError as error:
            found.append(Mistake(file.place(entry.trail), (), str(error)))
        else:
            good.append(entry)
    return good, found


def _of_entry(entry: Entry, entries: list[Entry], file: SpaceFile, recipe: Recipe) -> Iterator[Mistake]:
    """The mistakes of the first value that has any; a range that is wrong at one end may be so at the other too."""
    ends_are_right = True
    for own, searched in _probes(entry):
        if own == "between" and not ends_are_right:
            return
        where = dict(entry.where) | ({entry.name: searched} if isinstance(entry.parameter, Branch) else {})
        data = changed(recipe, typical_fields(entries, where) | dict.fromkeys(entry.paths, entry.field_value(searched)))
        for path, text in _errors(data, entry):
            if missing := _about_the_field(path, text, data, entry):
                yield Mistake(file.place(entry.trail), (entry.name,), missing)
                return
            ends_are_right = False
            end = (own,) if own in ("low", "high", "centre") else ()
            place = file.place((*entry.trail, own))
            reached = "; the first trials lie as far from the centre as factor says" if own == "factor" else ""
            yield Mistake(place, (entry.name, *end), f"{_becomes(entry, searched)}{text}{reached}", Value(searched))


def _errors(data: Any, entry: Entry) -> Iterator[tuple[Path, str]]:
    """By path, what is wrong about the fields that a parameter drives."""
    try:
        read_recipe(data)
    except ValidationError as error:
        driven = list(map(split, entry.paths))
        mistakes = translate(error, Document(data), schema_for(data))
        for details, mistake in zip(error.errors(), mistakes, strict=True):
            exact = any(mistake.path[: len(path)] == path for path in driven)
            around = any(path[: len(mistake.path)] == mistake.path for path in driven)
            if exact or (around and details["type"] in _STRUCTURE):
                yield mistake.path, mistake.text


def _about_the_field(path: Path, text: str, data: Any, entry: Entry) -> str | None:
    """What is wrong whatever the value: there is no such field, or it is an amount and wants a unit."""
    if text.startswith("unknown field"):
        name = f"{dotted(path)}: " if path != split(entry.paths[0]) else ""
        unknown = text.split(";")[0]
        if kinds := _kinds_with(path, data):
            return f"{name}{unknown}; {', '.join(kinds)} {'has' if len(kinds) == 1 else 'have'} it"
        return f"{name}{text}" if re.search("nearest|there is", text) else f"{name}{unknown}{_anywhere(path, data)}"
    node = schema_for(data).resolve(schema_of(path, data) or {})
    amount = str(node.get("allowed", "")).startswith("a number and a unit")
    if amount and isinstance(entry.parameter, FloatRange | IntegerRange | Unbounded) and entry.parameter.unit is None:
        return f"must be {node['allowed']}: give the parameter `unit`"
    return None


def _kinds_with(path: Path, data: Any) -> list[str]:
    """The kinds of the section that have the field which this kind does not have."""
    schema = schema_for(data)
    variants = schema.variants(schema_of(path[:-1], data) or {})
    return [tag for tag, section in variants.items() if path[-1] in schema.fields(section)]


def _anywhere(path: Path, data: Any) -> str:
    """Fields of about that name in any section."""
    schema = schema_for(data)
    sections = (schema.root, *schema.root["$defs"].values())
    names = dict.fromkeys(field for section in sections for field in section.get("properties", {}))
    close = [found for name in nearest(path[-1], names) for found in schema.paths(name)]
    if close:
        return f"; nearest: {', '.join(sorted(close, key=len)[:3])}"
    return f"; the fields are {', '.join(schema.fields(schema.root))}"


def _becomes(entry: Entry, searched: Any) -> str:
    """What the field becomes, where that is not what is searched."""
    if isinstance(entry.parameter, Fixed | Branch) or not Key.parse(entry.key).scale:
        return ""
    return f"{entry.paths[0]} would be {entry.field_value(searched):g}: "


def _of_constraints(file: SpaceFile, entries: list[Entry], recipe: Recipe) -> Iterator[Mistake]:
    """Constraints over what is no field or no number, or over amounts in different units."""
    data = [changed(recipe, typical_fields(entries, where)) for where in _alternatives(entries)]
    for index, text in enumerate(file.space.constraints):
        place, constraint = file.place(("constraints", index)), Constraint.parse(text)
        units = set[str]()
        for path in constraint.paths:
            if all(schema_of(split(path), one) is None for one in data):
                yield Mistake(place, ("constraints", index), f"{path} is no field{_near(path, data[0])}", Value(text))
            values = [_value(split(path), one) for one in data]
            if any(value is not None and number(value) is None for value in values):
                yield Mistake(place, ("constraints", index), f"{path} is no number", Value(text))
            units |= {str(Amount.parse(v).unit) for v in values if isinstance(v, str) and number(v) is not None}
        if len(units) > 1:
            listed = " and ".join(sorted(units))
            yield Mistake(place, ("constraints", index), f"compares {listed}: give all in one unit", Value(text))


def _of_recipe(file: SpaceFile, entries: list[Entry], recipe: Recipe) -> Iterator[Mistake]:
    """A recipe that the space is not made for, with what the space fixes."""
    data = changed(recipe, typical_fields(entries, {}))
    for path, values in file.space.recipes.items():
        value = _value(split(path), data)
        if value not in values:
            text = f"the space is made for {', '.join(map(flow, values))}; `auto` makes one for any recipe"
            yield Mistake(file.place(("recipes", path)), split(path), text, Value(value))


def _alternatives(entries: list[Entry]) -> list[dict[str, str]]:
    """Choices under which every parameter counts at least once."""
    return [{}, *({**dict(entry.where)} for entry in entries if entry.where)]


def _value(path: Path, data: Any) -> Any:
    try:
        value: Any = read_recipe(data).model_dump(mode="json")
    except ValidationError:
        value = data
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _near(path: str, data: Any) -> str:
    *outer, name = split(path)
    schema, section = schema_for(data), schema_of(tuple(outer), data) or {}
    variants = schema.variants(section).values() or (section,)
    fields = dict.fromkeys(field for variant in variants for field in schema.fields(variant))
    names = [dotted((*outer, other)) for other in nearest(name, fields)] or schema.paths(str(name))
    return f"; nearest: {', '.join(names)}" if names else ""
