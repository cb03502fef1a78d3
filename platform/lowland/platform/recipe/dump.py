"""A recipe as text and as parameters."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from lowland.platform.recipe.document import Dumper
from lowland.platform.recipe.mistakes import flow


def dump(recipe: BaseModel) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back to an equal recipe."""
    data = recipe.model_dump(mode="json")
    return str(yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100))


def flatten(recipe: BaseModel) -> dict[str, str | int | float]:
    """Every field of the recipe under its dotted name, as MLflow takes parameters."""
    return dict(_flatten(recipe.model_dump(mode="json"), ""))


def _flatten(value: Any, name: str) -> Iterator[tuple[str, str | int | float]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            # MLflow refuses other characters in a parameter's name; they come from the user's own tags.
            safe = re.sub(r"[^\w.\- /:]", "_", str(key))
            yield from _flatten(item, f"{name}.{safe}" if name else safe)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
    else:
        yield name, flow(value)
