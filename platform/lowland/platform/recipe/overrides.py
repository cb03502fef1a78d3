"""`--set optimizer.lr=1e-3`: changes to a recipe from the command line."""

from collections.abc import Sequence
from typing import Any

from lowland.platform.recipe.document import Document, parse
from lowland.platform.recipe.mistakes import Mistake, Path, dotted, shorten
from lowland.trainers.errors import RecipeError


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Changes the document's data in place, in the order given; what cannot be applied becomes a mistake."""
    for override in overrides:
        try:
            _apply(document, override)
        except RecipeError as error:
            document.mistakes.append(Mistake("", (), str(error)))


def _apply(document: Document, override: str) -> None:
    place = f"--set {override}"
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise RecipeError(f"{place}: write --set a.b=value, with the dotted name of a field")
    value = parse(text, place, lines=False)
    document.mistakes.extend(value.mistakes)
    container: Any = document.data
    path: Path = ()
    for name in names[:-1]:
        path, container = _enter(document, place, path, container, name)
    last = _key(place, path, container, names[-1])
    container[last] = value.data
    _replace_places(document, (*path, last), value)


def _enter(document: Document, place: str, path: Path, container: Any, name: str) -> tuple[Path, Any]:
    """One step down; sections that the file does not give are made."""
    key = _key(place, path, container, name)
    path = (*path, key)
    if isinstance(container, dict) and container.get(name) is None:
        container[name] = {}
        document.places[path] = place
    return path, container[key]


def _key(place: str, path: Path, container: Any, name: str) -> str | int:
    """The name as a key of the container: for a list, an index that it has."""
    match container:
        case dict():
            return name
        case list() if name.isdecimal() and int(name) < len(container):
            return int(name)
        case list():
            raise RecipeError(f"{place}: {dotted(path)} is a list of {len(container)}: write its index, counted from 0")
        case _:
            raise RecipeError(f"{place}: {dotted(path)} = {shorten(container)} has no fields")


def _replace_places(document: Document, path: Path, value: Document) -> None:
    depth = len(path)
    kept = {other: place for other, place in document.places.items() if other[:depth] != path}
    document.places = kept | {(*path, *inner): place for inner, place in value.places.items()}
