"""Whether what a command asks for is the search that it wants to go on with."""

from collections.abc import Sequence

from lowland.platform.recipe import Recipe
from lowland.platform.recipe.dump import flatten
from lowland.platform.resume import FREE_ON_RESUME, differences
from lowland.platform.runs import as_text
from lowland.platform.search.setting import Setting
from lowland.trainers.errors import UserError

_MOST = 6
"""Differences that are shown."""


def refuse_another(
    setting: Setting,
    recipe: Recipe,
    *,
    spaces: Sequence[str] | None = None,
    metric: Sequence[str] | None = None,
    direction: str | None = None,
    sampler: str | None = None,
    policy: str | None = None,
) -> None:
    """Checks what a command that resumes says besides; None is not said.

    Args:
        setting: of the search that is to go on.
        recipe: the command's.
        spaces: names or files.
        metric: what is compared.
        direction: of a single metric.
        sampler: see `lowland.platform.search.choices`.
        policy: the same.

    Raises:
        UserError: it is another search; the message shows both.
    """
    changed = differences(as_text(flatten(setting.recipe)), as_text(flatten(recipe)))
    found = [text for path, text in changed.items() if path.split(".", 1)[0] not in FREE_ON_RESUME]
    found += _space(setting, recipe, spaces) if spaces else []
    given = {"direction": direction, "sampler": sampler, "policy": policy}
    if metric:
        given["metric"] = ", ".join(text.partition(":")[0] for text in metric)
    held = {name: getattr(setting, name) for name in given}
    held["metric"] = ", ".join([setting.metric, *(other.metric for other in setting.others)])
    found += [f"{name}: {held[name]} -> {text}" for name, text in given.items() if text and text != held[name]]
    if found:
        more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
        raise UserError(
            f"study {setting.name!r} is another search ({'; '.join(found[:_MOST])}{more}); leave out what differs to "
            "go on with it, or begin one with another --name"
        )


def _space(setting: Setting, recipe: Recipe, spaces: Sequence[str]) -> list[str]:
    from lowland.platform.search.space import open_space

    held = setting.bound().distributions()
    asked = open_space(spaces, recipe).distributions()
    return [
        f"{name}: {held.get(name, 'absent')} -> {asked.get(name, 'absent')}"
        for name in sorted({*held, *asked})
        if held.get(name) != asked.get(name)
    ]
