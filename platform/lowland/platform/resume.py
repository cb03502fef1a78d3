"""Whether a command starts a run or continues it.

Ray continues a run whose name is used again, and calls a finished one a success having trained nothing;
so a name is never reused without being asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lowland.platform.recipe import Recipe, read_recipe
from lowland.platform.recipe.document import parse
from lowland.platform.recipe.dump import flatten
from lowland.platform.runs import PLACE, Fields, RunRecord, as_text
from lowland.trainers.errors import RecipeError, UserError

# A change of these cannot change what is learned, so a run named by --resume takes them without remark.
FREE_ON_RESUME = ("scaling", "sharding", "tracking")


@dataclass(frozen=True)
class Start:
    """Start a new run."""


@dataclass(frozen=True)
class Resume:
    """Continue the run."""

    changes: tuple[str, ...] = ()
    """Fields that differ from the recipe the run had and may change what is learned: `path: old -> new`."""


def decide(resume: str, name: str, record: RunRecord | None, recipe: Fields) -> Start | Resume:
    """Whether a command starts a run or continues it.

    Args:
        resume: `never` refuses any existing run; `auto` continues an unfinished run of the same recipe and
            starts one if the name is free; anything else names the run to continue, whatever has changed.
        name: name of the run: the recipe's, or the one that `resume` names.
        record: the run of that name; None if there is none.
        recipe: every field of the resolved recipe, by dotted path.

    Raises:
        UserError: the run may be neither started nor continued.
    """
    explicit = resume not in ("auto", "never")
    if record is None:
        if explicit:
            raise UserError(f"--resume {resume}: there is no run of that name; `--resume never` starts a new run")
        return Start()
    if resume == "never":
        raise UserError(
            f"run {name!r} exists ({record.status}); continue it with `--resume {name}`, or choose another "
            "name with `--name`"
        )
    _refuse_if_led(record)
    changed = differences(record.recipe, as_text(recipe))
    if record.status == "finished" and not (explicit and "length" in changed):
        raise UserError(
            f"run {name!r} has finished; choose another name with `--name`, or train it longer with "
            f"`--resume {name} --set length=...`"
        )
    if explicit:
        return Resume(tuple(text for path, text in changed.items() if _matters(path)))
    if changed:
        raise UserError(
            f"run {name!r} has another recipe ({_short(list(changed.values()))}); continue it with the "
            f"changes by `--resume {name}`, or choose another name with `--name`"
        )
    return Resume()


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The fields that make two recipes different, by dotted path, each as `path: old -> new`."""
    paths = [path for path in {**old, **new} if path not in PLACE and old.get(path) != new.get(path)]
    return {path: f"{path}: {old.get(path, 'unset')} -> {new.get(path, 'unset')}" for path in paths}


def as_now(held: Mapping[str, str], recipe: Recipe) -> Mapping[str, str]:
    """A run's fields as this version of lowland has them: those that came since it began are at their defaults.

    Args:
        held: by dotted path, as the version wrote them that began the run; given back where they make no recipe now.
        recipe: with which it is to go on.
    """
    fields, sections = as_text(flatten(recipe)), recipe.model_dump(mode="json")
    differing = [path for path in {**held, **fields} if held.get(path) != fields.get(path)]
    for path in differing:
        _remove(sections, path.split("."))
    for path in differing:
        if path in held and not _insert(sections, path.split("."), _value(held[path])):
            return held
    try:
        return as_text(flatten(read_recipe(sections)))
    except ValidationError:
        return held


def _remove(section: dict[str, Any], path: list[str]) -> None:
    """Takes a field out, and the section that was all of."""
    name, *rest = path
    inner = section.get(name)
    if rest and isinstance(inner, dict):
        _remove(inner, rest)
    if not rest or inner == {}:
        section.pop(name, None)


def _insert(section: dict[str, Any], path: list[str], value: Any) -> bool:
    """Puts a field in; False where its section is none, as with two tags `a` and `a.b`."""
    *parents, name = path
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            return False
    section[name] = value
    return True


def _value(text: str) -> Any:
    try:
        return parse(text, "").data
    except RecipeError:
        return text


def _refuse_if_led(record: RunRecord) -> None:
    if record.status == "running" and record.driver is not None and record.driver.alive():
        raise UserError(f"run {record.name!r} is being trained by process {record.driver.pid}; stop that first")


def _matters(path: str) -> bool:
    return path.split(".", 1)[0] not in FREE_ON_RESUME


def _short(items: list[str], most: int = 4) -> str:
    rest = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + rest
