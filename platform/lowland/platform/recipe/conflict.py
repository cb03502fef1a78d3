"""A mistake between fields that are each right."""

from dataclasses import dataclass
from typing import Any

from lowland.platform.recipe.mistakes import Path


@dataclass(frozen=True)
class Conflict:
    """Fields that do not go together; the place, path and value shown are those of one of them."""

    path: Path
    value: Any
    text: str
