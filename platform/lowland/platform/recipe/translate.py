"""Pydantic's errors in the words of someone who writes a recipe."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lowland.platform.recipe.document import Document
from lowland.platform.recipe.mistakes import Mistake, Path, Value, dotted, nearest
from lowland.platform.recipe.schema import RecipeSchema


def translate(error: ValidationError, document: Document, schema: RecipeSchema) -> list[Mistake]:
    """One mistake for each of pydantic's errors, in the order of the file."""
    return [_translate(details, document, schema) for details in error.errors()]


def _translate(details: ErrorDetails, document: Document, schema: RecipeSchema) -> Mistake:
    path, node = schema.without_tags(details["loc"])
    given = details["input"]
    value: Value | None = Value(given)
    match details["type"]:
        case "extra_forbidden":
            text = _unknown(path, details["loc"], schema)
        case "missing" if isinstance(path[-1], int):
            return _list_too_short(document, schema, details)
        case "missing":
            text, value = f"missing: give {schema.allowed(node)}", None
        case "union_tag_not_found":
            path = (*path, schema.discriminator(node))
            text, value = f"missing: give one of {', '.join(schema.variants(node))}", None
        case "union_tag_invalid":
            name = schema.discriminator(node)
            path, value = (*path, name), Value(given[name])
            text = _not_one_of(given[name], list(schema.variants(node)))
        case "literal_error":
            text = _not_one_of(given, schema.choices(node))
        case "value_error":
            text = str(details["ctx"]["error"])
            # A check over a whole section names its fields itself.
            value = None if isinstance(given, Mapping) else value
        case "string_type" if isinstance(given, int | float):
            text = f"must be {schema.allowed(node)}: put it in quotes"
        case _:
            text = f"must be {schema.allowed(node)}"
    return Mistake(document.place(path), path, text, value)


def _list_too_short(document: Document, schema: RecipeSchema, details: ErrorDetails) -> Mistake:
    parent, node = schema.without_tags(details["loc"][:-1])
    return Mistake(document.place(parent), parent, f"must be {schema.allowed(node)}", Value(details["input"]))


def _not_one_of(value: Any, allowed: list[Any]) -> str:
    names = [str(name) for name in allowed]
    return f"must be {'one of ' if len(names) > 1 else ''}{', '.join(names)}" + _suggestion(nearest(value, names))


def _unknown(path: Path, location: Path, schema: RecipeSchema) -> str:
    _, section = schema.without_tags(location[:-1])
    fields, name = schema.fields(section), str(path[-1])
    owner = _variant_name(location, path, schema)
    if close := nearest(name, fields):
        return f"unknown field{owner}{_suggestion(close)}"
    if elsewhere := [other for other in schema.paths(name) if other != dotted(path)]:
        return f"unknown field{owner}; there is {', '.join(elsewhere)}"
    return f"unknown field{owner}; the fields are {', '.join(fields)}"


def _variant_name(location: Path, path: Path, schema: RecipeSchema) -> str:
    """` of adamw`, for a field of a union's section: which fields there are depends on its tag."""
    tag = location[-2] if len(location) > len(path) else None
    outer, union = schema.without_tags(location[:-2])
    return f" of {outer[-1]} {tag}" if tag in schema.variants(union) and outer == path[:-1] else ""


def _suggestion(names: list[str]) -> str:
    return f"; nearest: {', '.join(names)}" if names else ""
