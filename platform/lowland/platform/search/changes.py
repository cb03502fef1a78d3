"""A recipe with other values of some fields."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from lowland.platform.recipe import recipe_class
from lowland.platform.recipe.mistakes import Path, dotted, shorten
from lowland.platform.recipe.schema import Node, RecipeSchema
from lowland.trainers.errors import RecipeError
from lowland.trainers.recipe.optimizers.mixed import INHERITED


def schema_for(data: Any) -> RecipeSchema:
    """The schema of the recipes of the task that data name."""
    return RecipeSchema(recipe_class(data))


def changed(recipe: BaseModel, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's data with these values by dotted path; fields that it did not give keep their defaults.

    A section that gets another `name` keeps what all its kinds have (of an optimizer the rate, weight decay and what is
    around it) and loses the rest, so that AdamW's betas are not handed to AdaTAMW.

    Raises:
        RecipeError: a path leads into a value, or beyond the end of a list.
    """
    data: dict[str, Any] = recipe.model_dump(mode="json", exclude_unset=True)
    _forget_inherited(data)
    for path in sorted(map(split, fields), key=_order):
        _put(data, path, fields[dotted(path)])
    return data


def split(path: str) -> Path:
    """A dotted path as keys and list indices."""
    return tuple(int(key) if key.isdecimal() else key for key in path.split("."))


def schema_of(path: Path, data: Any) -> Node | None:
    """What a field may be, in sections of the kinds that the data has; None if there is no such field."""
    schema = schema_for(data)
    node: Node | None = schema.root
    for key in path:
        if node is None:
            return None
        node = schema.child(_kind(schema, node, data), key)
        data = _get(data, key)
    return node


def _kind(schema: RecipeSchema, node: Node, data: Any) -> Node:
    """Of a union the section that the data is."""
    variants = schema.variants(node)
    if not variants or not isinstance(data, Mapping):
        return node
    return variants.get(str(data.get(schema.discriminator(node))), node)


def _get(data: Any, key: str | int) -> Any:
    if isinstance(data, Mapping):
        return data.get(key)
    return data[key] if isinstance(data, list) and isinstance(key, int) and key < len(data) else None


def _order(path: Path) -> tuple[int, bool]:
    """Sections before what is in them, and which kind a section is before its other fields."""
    return len(path), path[-1] != "name"


def _put(data: dict[str, Any], path: Path, value: Any) -> None:
    container: Any = data
    for depth, key in enumerate(path[:-1], start=1):
        inner = _get(container, key)
        if inner is None:
            default = schema_for(data).resolve(schema_of(path[:depth], data) or {}).get("default")
            inner = list(default) if isinstance(default, list) else dict(default) if isinstance(default, dict) else {}
        elif not isinstance(inner, dict | list):
            raise RecipeError(f"{dotted(path)}: {dotted(path[:depth])} = {shorten(inner)} has no fields")
        _assign(container, path[:depth], key, inner)
        container = inner
    _change_kind(data, container, path, value)
    _assign(container, path, path[-1], value)


def _assign(container: Any, path: Path, key: str | int, value: Any) -> None:
    if isinstance(container, list) and not (isinstance(key, int) and key < len(container)):
        text = f"is a list of {len(container)}: write an index, counted from 0"
        raise RecipeError(f"{dotted(path)}: {dotted(path[:-1])} {text}")
    container[key] = value


def _change_kind(data: dict[str, Any], section: Any, path: Path, value: Any) -> None:
    """Takes from a section the fields of its kind, if it is to become another one."""
    union = schema_of(path[:-1], data)
    schema = schema_for(data)
    variants = schema.variants(union) if union is not None else {}
    if not variants or path[-1] != schema.discriminator(union or {}) or section.get(path[-1]) == value:
        return
    common = set.intersection(*(set(schema.fields(variant)) for variant in variants.values()))
    for field in set(section) - common:
        del section[field]


def _forget_inherited(data: dict[str, Any]) -> None:
    """Rules of a mixed optimizer name what they took over from it as if it were their own."""
    optimizer = data["optimizer"]
    for rule in optimizer.get("rules", ()):
        for name in INHERITED:
            if name in rule["optimizer"] and rule["optimizer"][name] == optimizer.get(name):
                del rule["optimizer"][name]
