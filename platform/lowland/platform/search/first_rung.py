"""Where in a training trials are first compared."""

import math
from collections.abc import Iterator
from typing import Any

from lowland.platform.recipe import Recipe
from lowland.platform.search.policies import default_first
from lowland.platform.search.setting import TICKS, Setting
from lowland.search_spaces import Branch, Choice, Entry, Fixed, FloatRange, IntegerRange, Space, Unbounded
from lowland.trainers.errors import UserError
from lowland.trainers.recipe.amounts import Amount

WARMUP = "schedule.warmup"
NO_RUNGS = ("none", "pbt")
"""Policies that compare no trials at rungs."""


def first_rung(text: str | None, policy: str, space: Space, recipe: Recipe) -> int:
    """The first place, in parts of a training, at which a policy compares trials; 0 if it compares them at none.

    Args:
        text: the place as users write it, `12%`; None is a seventeenth of a training, or where the longest warm-up that
            trials may have is over: before, trials are told apart by how far each one's rate has risen, and the best
            there are not the best later.
        policy: its name.
        space: what trials change.
        recipe: of which.

    Raises:
        UserError: the place is no percentage of a training, or the policy has none.
    """
    if policy in NO_RUNGS:
        if text is not None:
            raise UserError(f"--first-rung {text}: --policy {policy} compares no trials there; leave one of them out")
        return 0
    if text is not None:
        return _read(text)
    behind = math.ceil(longest_warmup(space, recipe) * TICKS - 1e-9)
    return min(max(default_first(TICKS), behind), TICKS)


def longest_warmup(space: Space, recipe: Recipe) -> float:
    """Of the trials, as a share of a training; those in other units than the recipe's length are left out."""
    driving = [entry for entry in space.entries() if WARMUP in entry.paths]
    found = [value for entry in driving for value in _values(entry)]
    if all(entry.where for entry in driving):
        found.append(recipe.schedule.warmup)
    return max((_share(value, recipe.length) for value in found), default=0.0)


def notes(setting: Setting) -> Iterator[str]:
    """What people are to know of a first rung that is not the usual one."""
    if setting.policy in NO_RUNGS:
        return
    place, warmup = setting.first_rung / TICKS, longest_warmup(setting.space, setting.recipe)
    if warmup > place:
        yield (
            f"note: trials are first compared after {place:.0%} of a training, and warm-ups of up to {warmup:.0%} are "
            "not over there: what warms up slowly looks worse than it is; a search without --first-rung compares later"
        )
    elif setting.first_rung > default_first(TICKS) and warmup:
        yield f"trials are first compared after {place:.0%} of a training, behind warm-ups of up to {warmup:.0%}"


def _read(text: str) -> int:
    try:
        amount = Amount.parse(text)
    except ValueError:
        amount = Amount(0, "%")
    if amount.unit != "%" or not 0 < amount.value <= 100:
        raise UserError(f"--first-rung {text}: write a percentage of a training, for example 12%")
    return max(1, round(amount.value / 100 * TICKS))


def _values(entry: Entry) -> Iterator[Any]:
    """What the field may become, of a range its ends."""
    match entry.parameter:
        case FloatRange(low=low, high=high) | IntegerRange(low=low, high=high):
            yield from map(entry.field_value, (low, high))
        case Unbounded(high=high):
            yield from [entry.field_value(high)] if high is not None else []
        case Choice(values=values):
            yield from values
        case Branch(alternatives=alternatives):
            yield from alternatives
        case Fixed(value=value):
            yield value


def _share(warmup: Any, length: Amount) -> float:
    amount = warmup if isinstance(warmup, Amount) else Amount.parse(str(warmup))
    if amount.unit == "%":
        return amount.value / 100
    return amount.value / length.value if amount.unit == length.unit else 0.0
