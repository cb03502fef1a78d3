"""Whether what a command asks for is the search that it wants to go on with."""

from collections.abc import Sequence
from typing import Any

from lowland.platform.hub_data import with_commit
from lowland.platform.recipe import Recipe
from lowland.platform.recipe.dump import flatten
from lowland.platform.resume import differences
from lowland.platform.runs import as_text
from lowland.platform.search.compatibility import read_objectives
from lowland.platform.search.first_rung import first_rung
from lowland.platform.search.objectives import Objective
from lowland.platform.search.setting import Setting
from lowland.platform.search.storage import database_of
from lowland.platform.urls import redact
from lowland.trainers.errors import UserError

_MOST = 6
"""Differences that are shown."""
_AT_THE_BEGINNING = {"warm_start": "--warm-start", "related": "--related", "known_lr": "--known-lr"}
"""What only a new search can take."""


def refuse_another(
    setting: Setting,
    recipe: Recipe,
    *,
    spaces: Sequence[str] | None = None,
    metric: Sequence[str] | None = None,
    **given: Any,
) -> None:
    """Checks what a command that resumes says besides; what is not said is not given.

    Args:
        setting: of the search that is to go on.
        recipe: the command's.
        spaces: names or files.
        metric: what is compared.
        given: other arguments of `lowland.platform.search.start.begin`.

    Raises:
        UserError: it is another search; the message shows both.
    """
    if late := [name for key, name in _AT_THE_BEGINNING.items() if key in given]:
        raise UserError(f"{late[0]} counts when a search begins, and {setting.name!r} has begun; leave it out")
    # A training that goes on may take another number of workers; a search keeps its whole recipe.
    had = as_text(flatten(setting.recipe))
    recipe = with_commit(recipe, had)
    found = list(differences(had, as_text(flatten(recipe))).values())
    found += _space(setting, recipe, spaces) if spaces else []
    if "first_rung" in given:
        given["first_rung"] = first_rung(given["first_rung"], setting.policy, setting.space, recipe)
    asked = {name: _as_held(name, value) for name, value in given.items()}
    held = {name: _as_held(name, getattr(setting, name)) for name in given}
    if metric:
        objectives = read_objectives(
            metric, given.get("direction", setting.direction if len(metric) == 1 else "minimize")
        )
        asked["metric"] = ", ".join(map(str, objectives))
        held["metric"] = ", ".join(map(str, [Objective(setting.metric, setting.direction), *setting.others]))
    found += [f"{name}: {held[name]} -> {text}" for name, text in asked.items() if text != held[name]]
    if found:
        more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
        raise UserError(
            f"study {setting.name!r} is another search ({'; '.join(found[:_MOST])}{more}); leave out what differs to "
            "go on with it, or begin one with another --name"
        )


def _as_held(name: str, value: Any) -> str:
    """As a text that two equal values share and that holds no password."""
    if value is None:
        return "none"
    if name == "database":
        return redact(database_of(value))
    return ", ".join(value) or "none" if isinstance(value, list | tuple) else str(value)


def _space(setting: Setting, recipe: Recipe, spaces: Sequence[str]) -> list[str]:
    from lowland.platform.search.space import open_space

    here, there = setting.bound(), open_space(spaces, recipe)
    held, asked = ({**space.distributions(), **space.unbounded()} for space in (here, there))
    return [
        f"{name}: {held.get(name, 'absent')} -> {asked.get(name, 'absent')}"
        for name in sorted({*held, *asked})
        if held.get(name) != asked.get(name)
    ]
