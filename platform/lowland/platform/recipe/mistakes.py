"""One thing wrong in a recipe, and how it reads."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lowland.trainers.errors import RecipeError

Path = tuple[str | int, ...]
"""Where a field is: its keys and list indices from the top of the recipe."""

_WIDTH = 60


@dataclass(frozen=True)
class Value:
    """The value a mistake shows; a class of its own because null is a value too."""

    data: Any


@dataclass(frozen=True)
class Mistake:
    """`recipe.yaml:12: optimizer.learning_rate = 0.1: unknown field; nearest: lr`."""

    place: str
    """File and line, or the override as it was given."""
    path: Path
    """The field; empty for the recipe as a whole."""
    text: str
    """What is wrong, what is allowed, the way out."""
    value: Value | None = None

    def __str__(self) -> str:
        shown = dotted(self.path) + (f" = {shorten(self.value.data)}" if self.value else "")
        return ": ".join(part for part in (self.place, shown, self.text) if part)


def recipe_error(mistakes: Sequence[Mistake]) -> RecipeError:
    """The one error that tells all mistakes, a line each."""
    return RecipeError("\n".join(dict.fromkeys(map(str, mistakes))))


def dotted(path: Path) -> str:
    """`optimizer.betas.0`."""
    return ".".join(map(str, path))


def shorten(value: Any) -> str:
    """The value in YAML's flow style, cut to a readable width."""
    text = flow(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def flow(value: Any) -> str:
    """The value on one line, about as YAML's flow style writes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case dict():
            return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(flow, value)) + "]"
        case str():
            return repr(value) if value == "" or value != value.strip() or "\n" in value else value
        case _:
            return str(value)


def nearest(word: Any, allowed: Iterable[str]) -> list[str]:
    """Up to three allowed names that the given word may have meant, best first."""
    given, names = str(word).lower(), list(allowed)
    candidates = {name.lower(): name for name in names}
    close = [candidates[name] for name in difflib.get_close_matches(given, candidates, n=3, cutoff=0.6)]
    return close or [name for name in names if _abbreviates(given, name.lower())][:3]


def _abbreviates(one: str, other: str) -> bool:
    """Whether one stands for the other: `lr` and `learning_rate`, `gpus` and `gpus_per_worker`."""
    short, long = sorted((one, other), key=len)
    initials = "".join(part[:1] for part in long.split("_"))
    return len(short) > 1 and (short == initials or long.startswith(f"{short}_") or long.endswith(f"_{short}"))
