"""What is compared, by name: recipes, or optimizers on one recipe."""

from collections.abc import Mapping, Sequence
from functools import cache

from lowland.platform.recipe import Recipe
from lowland.platform.recipe.mistakes import nearest
from lowland.platform.search.space_files import load_space
from lowland.search_spaces import Fixed, shipped
from lowland.trainers.errors import UserError

AROUND = ("sam", "lookbehind", "ema")
"""Spaces of what is put around an optimizer."""
Arms = Mapping[str, tuple[Recipe, Sequence[str]]]
"""By name the recipe, and the names or files of its spaces; the first is what others are compared with."""


def recipe_arms(recipes: Sequence[Recipe], spaces: Sequence[str]) -> Arms:
    """An arm for each recipe, by its name.

    Raises:
        UserError: there are less than two, or two of one name, or a space is of none of them.
    """
    names = [recipe.name for recipe in recipes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two recipes are called {twice!r}: give each a name of its own")
    if len(recipes) < 2:
        raise UserError("a comparison needs two recipes; or one, and --optimizers, for example adamw,adatamw")
    _refuse_unknown_arms(spaces, names)
    return {recipe.name: (recipe, _own(spaces, recipe.name) or ["auto"]) for recipe in recipes}


def optimizer_arms(recipes: Sequence[Recipe], spaces: Sequence[str], optimizers: Sequence[str]) -> Arms:
    """An arm for each optimizer, all on one recipe, each over its own space and those of all.

    Raises:
        UserError: there are several recipes, less than two optimizers, or one has no space.
    """
    if len(recipes) != 1:
        raise UserError(f"--optimizers is for one recipe; {len(recipes)} are given")
    names = [text.replace("+", "-") for text in optimizers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--optimizers: {twice} is there twice")
    if len(names) < 2:
        raise UserError(f"--optimizers {','.join(optimizers)}: give two at least, for example adamw,adatamw")
    _refuse_unknown_arms(spaces, names)
    besides = {name: [space for space in _own(spaces, name) if space != "auto"] for name in names}
    own = (_own_spaces(text, recipes[0].optimizer.name) for text in optimizers)
    return {name: (recipes[0], [*first, *besides[name]]) for name, first in zip(names, own, strict=True)}


def _own_spaces(text: str, optimizer: str) -> list[str]:
    """The spaces of an arm of `--optimizers`: its optimizer's, the recipe's if it names none, and of what is around."""
    parts = text.split("+")
    known = [*_optimizers(), *AROUND]
    for part in parts:
        if part not in known:
            close = nearest(part, known)
            raise UserError(f"--optimizers {text}: {part!r} has no space; {_hint(close, known)}")
    around = [part for part in parts if part in AROUND]
    own = [part for part in parts if part not in AROUND] or [optimizer]
    if len(own) > 1:
        raise UserError(
            f"--optimizers {text}: {' and '.join(own)} are two optimizers; only {', '.join(AROUND)} go around"
        )
    if own[0] not in known:
        raise UserError(f"--optimizers {text}: the recipe's {own[0]} has no space; name another, as adamw+{text}")
    return [*own, *around]


def _hint(close: Sequence[str], known: Sequence[str]) -> str:
    return f"nearest: {', '.join(close)}" if close else f"there are {', '.join(known)}"


@cache
def _optimizers() -> tuple[str, ...]:
    """Names of the spaces that are each one optimizer's."""
    found = {name: load_space(name).parameters.get("optimizer.name") for name in shipped()}
    return tuple(name for name, fixed in found.items() if isinstance(fixed, Fixed))


def _own(spaces: Sequence[str], arm: str) -> list[str]:
    """The spaces of an arm: those of all, and `arm=SPACE`."""
    pairs = [space.rpartition("=") for space in spaces]
    return [space for name, _, space in pairs if name in ("", arm)]


def _refuse_unknown_arms(spaces: Sequence[str], arms: Sequence[str]) -> None:
    for space in spaces:
        name, _, _ = space.rpartition("=")
        if name and name not in arms:
            raise UserError(f"--space {space}: {name!r} is none of {', '.join(arms)}")
