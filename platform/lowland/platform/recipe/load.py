"""Reading a recipe, and telling all that is wrong with it at once."""

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lowland.platform.recipe.checks import find_conflicts
from lowland.platform.recipe.document import Document, read_document
from lowland.platform.recipe.mistakes import Mistake, Value, nearest, recipe_error
from lowland.platform.recipe.model import RECIPES, Recipe, recipe_class, task_of
from lowland.platform.recipe.overrides import apply_overrides
from lowland.platform.recipe.schema import RecipeSchema
from lowland.platform.recipe.translate import translate


def load_recipe(path: FilePath | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file, applies `a.b=value` overrides in their order, and checks everything that needs no cluster.

    Raises:
        RecipeError: its message holds every mistake, a line each: file and line, dotted path, value,
            what is allowed, nearest names.
    """
    document = read_document(FilePath(path))
    if not isinstance(document.data, dict):
        place = document.place(()) or str(path)
        raise recipe_error([*document.mistakes, Mistake(place, (), "a recipe is a section of `key: value` lines")])
    apply_overrides(document, overrides)
    _require_task(document)
    recipe, mistakes = _validate(document)
    sections = dict(recipe) if recipe is not None else _valid_sections(document.data)
    mistakes += [
        Mistake(document.place(conflict.path), conflict.path, conflict.text, Value(conflict.value))
        for conflict in find_conflicts(sections)
    ]
    if mistakes or recipe is None:
        raise recipe_error(_in_reading_order(mistakes, document))
    return recipe


def _require_task(document: Document) -> None:
    """Without a task it is not known what the other fields mean."""
    if (task := task_of(document.data)) not in RECIPES:
        close = "".join(f"; nearest: {name}" for name in nearest(task, list(RECIPES))[:1])
        text = f"must be one of {', '.join(RECIPES)}{close}"
        raise recipe_error([*document.mistakes, Mistake(document.place(("task",)), ("task",), text, Value(task))])


def _in_reading_order(mistakes: list[Mistake], document: Document) -> list[Mistake]:
    order = {place: index for index, place in enumerate(dict.fromkeys(document.places.values()))}
    return sorted(mistakes, key=lambda mistake: order.get(mistake.place, -1))


def _validate(document: Document) -> tuple[Recipe | None, list[Mistake]]:
    try:
        return recipe_class(document.data).model_validate(document.data), document.mistakes
    except ValidationError as error:
        seen = {mistake.path for mistake in document.mistakes if mistake.path}
        found = translate(error, document, RecipeSchema(recipe_class(document.data)))
        return None, [*document.mistakes, *(mistake for mistake in found if mistake.path not in seen)]


def _valid_sections(data: dict[str, Any]) -> dict[str, Any]:
    """The parts of a wrong recipe that are right, so that checks across them still run."""
    sections = dict[str, Any]()
    for name, field in recipe_class(data).model_fields.items():
        if name not in data:
            if not field.is_required():
                sections[name] = field.get_default(call_default_factory=True)
            continue
        try:
            sections[name] = TypeAdapter(field.rebuild_annotation()).validate_python(data[name])
        except ValidationError:
            continue
    return sections
