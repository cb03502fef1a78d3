"""Search spaces as files: read with the line of every value, and put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from lowland.platform.recipe.document import Document, parse, read_document
from lowland.platform.recipe.mistakes import Mistake, Path, Value, nearest, recipe_error
from lowland.platform.recipe.schema import RecipeSchema
from lowland.platform.recipe.translate import translate
from lowland.search_spaces import NAMES, Branch, Entry, Fixed, Parameter, Space, shipped
from lowland.trainers.errors import RecipeError

SCHEMA = RecipeSchema(Space)


@dataclass(frozen=True)
class SpaceFile:
    """A space and the places of its values."""

    space: Space
    source: str
    """The file, or what else it comes from."""
    places: Mapping[Path, str] = field(default_factory=dict)

    def place(self, trail: Path) -> str:
        """The place of a value; of what is around it if it is not there."""
        while trail and trail not in self.places:
            trail = trail[:-1]
        return self.places.get(trail, self.source)


def load_space(name: str) -> Space:
    """A space by its name or its file.

    Raises:
        RecipeError: its message holds every mistake, a line each.
    """
    return read_space(name).space


def read_space(name: str) -> SpaceFile:
    """A space that comes with lowland, by its name; or a YAML file, by its path.

    Raises:
        RecipeError: its message holds every mistake, a line each: file and line, dotted path, value, what is allowed,
            nearest names.
    """
    if (file := shipped().get(name)) is not None:
        document = parse(file.read_text(encoding="utf-8"), f"{name}.yaml")
    elif FilePath(name).suffix in (".yaml", ".yml") or FilePath(name).exists():
        document = read_document(FilePath(name))
    else:
        close = nearest(name, ["auto", *shipped()])
        hint = f"nearest: {', '.join(close)}" if close else f"there are auto, {', '.join(shipped())}"
        raise RecipeError(f"--space {name}: no such space and no such file; {hint}")
    return SpaceFile(_validate(document), document.place(()).rsplit(":", 1)[0] or name, document.places)


def merge(files: Sequence[SpaceFile]) -> SpaceFile:
    """All parameters and constraints of several spaces.

    Raises:
        RecipeError: two of them drive the same field.
    """
    if len(files) == 1:
        return files[0]
    parameters = dict[str, Parameter]()
    places = dict[Path, str]()
    mistakes = list[Mistake]()
    for file in files:
        mistakes += _driven_before(parameters, places, file)
        parameters |= file.space.parameters
        places |= {path: place for path, place in file.places.items() if path[:1] == ("parameters",)}
    if mistakes:
        raise recipe_error(mistakes)
    constraints = [text for file in files for text in file.space.constraints]
    places |= {("constraints", i): place for i, place in enumerate(_constraint_places(files))}
    source = " and ".join(file.source for file in files)
    description = "; ".join(file.space.description for file in files)
    places |= {path: place for file in files for path, place in file.places.items() if path[:1] == ("recipes",)}
    try:
        space = Space(
            description=description, recipes=_recipes(files), parameters=parameters, constraints=tuple(constraints)
        )
    except ValidationError as error:
        raise RecipeError(f"{source}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return SpaceFile(space, source, places)


def _driven_before(parameters: Mapping[str, Parameter], places: Mapping[Path, str], file: SpaceFile) -> list[Mistake]:
    """The fields of a file that the parameters drive already, but for those that both fix at the same value."""
    if not parameters:
        return []
    before = Space.model_construct(description="", parameters=dict(parameters), constraints=())
    driven = {path: entry for entry in before.entries() for path in entry.paths}
    names = {entry.key for entry in before.entries() if isinstance(entry.parameter, Branch) and not entry.where}
    found = list[Mistake]()
    for entry in file.space.entries():
        place = file.place(entry.trail)
        for path in entry.paths:
            if path in driven and not _same_value(entry, driven[path]):
                other = SpaceFile(before, "another space", places).place(driven[path].trail)
                found.append(Mistake(place, (path,), f"driven by {other} too; keep one, in a space file of your own"))
        if entry.key in names and not entry.where and not entry.paths:
            found.append(Mistake(place, (entry.key,), "another space has a branch of this name; rename it"))
    return found


def _same_value(one: Entry, other: Entry) -> bool:
    return isinstance(one.parameter, Fixed) and one.parameter == other.parameter and one.where == other.where == ()


def _recipes(files: Sequence[SpaceFile]) -> dict[str, tuple[Any, ...]]:
    """The recipes that all spaces are made for."""
    merged = dict[str, tuple[Any, ...]]()
    for file in files:
        for path, values in file.space.recipes.items():
            merged[path] = tuple(value for value in merged.get(path, values) if value in values)
    return merged


def _constraint_places(files: Sequence[SpaceFile]) -> list[str]:
    return [file.place(("constraints", i)) for file in files for i in range(len(file.space.constraints))]


def _validate(document: Document) -> Space:
    if not isinstance(document.data, dict):
        place = document.place(())
        raise recipe_error([*document.mistakes, Mistake(place, (), "a space is a section of `key: value` lines")])
    try:
        space = Space.model_validate(document.data)
    except ValidationError as error:
        seen = {mistake.path for mistake in document.mistakes if mistake.path}
        found = [_reworded(mistake, document.data) for mistake in translate(error, document, SCHEMA)]
        raise recipe_error([*document.mistakes, *(m for m in found if m.path not in seen)]) from None
    if document.mistakes:
        raise recipe_error(document.mistakes)
    return space


def _reworded(mistake: Mistake, data: Any) -> Mistake:
    """Pydantic marks a wrong name of a parameter by a key of its own."""
    if mistake.path[-1:] != ("[key]",):
        return mistake
    path = mistake.path[:-1]
    return Mistake(mistake.place, path, f"must be {NAMES}", Value(path[-1]))
