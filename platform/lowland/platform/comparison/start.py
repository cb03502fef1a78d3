"""A comparison before it runs: checked as far as it can be without a cluster."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count, islice
from typing import Any

from lowland.platform.comparison.plan import Arm, Comparison, Plan, read_comparison
from lowland.platform.comparison.stages import tuning
from lowland.platform.recipe import Recipe
from lowland.platform.recipe.mistakes import nearest
from lowland.platform.search.space import open_space
from lowland.platform.search.space_files import load_space
from lowland.search_spaces import Fixed, shipped
from lowland.trainers.errors import DataError, UserError

AROUND = ("sam", "lookbehind", "ema")
"""Spaces of what is put around an optimizer."""
LONGEST = 92
"""Letters of an arm's name: its studies' names are longer, and a run's has at most 100."""
_Arms = Mapping[str, tuple[Recipe, Sequence[str]]]
"""By name the recipe, and the names or files of its spaces."""


def begin(
    recipes: Sequence[Recipe],
    spaces: Sequence[str] = ("auto",),
    *,
    optimizers: Sequence[str] = (),
    name: str | None = None,
    seeds: int = 5,
    metric: str = "eval/loss",
    direction: str = "minimize",
    trials: int | None = None,
    budget: str | None = None,
    parallel: str = "auto",
    sampler: str = "multi-fidelity",
    policy: str = "promotion",
    seed: int = 0,
    resume: bool = False,
) -> Comparison:
    """A comparison, new or to go on with, checked as far as it can be without a cluster.

    Args:
        recipes: at least two, told apart by their names, the first of which the others are compared with; one with
            `optimizers`.
        spaces: names or files, of every arm; `adamw=FILE` is of that arm alone.
        optimizers: the arms, each an optimizer that has a space, `sam`, `lookbehind` or `ema` around the recipe's, or
            several by `+`, as `adamw+sam`.  Each is searched over its own space, and `spaces` besides.
        name: of the comparison; by default it is made of the arms' names.
        seeds: how many trainings of each winner are reported, at least 2.
        metric: what is compared, of an evaluation or a record.
        direction: `minimize` or `maximize`.
        trials: how many each search begins at most.
        budget: what each search may spend, for example `40gpu-hours`.
        parallel: trainings at a time; `auto` is as many as the cluster holds.
        sampler: see `lowland.platform.search.choices`.
        policy: the same.
        seed: of the samplers.
        resume: go on with the comparison of this name.

    Raises:
        UserError: the name is taken, or there is nothing to go on with, or it is another comparison; or something is
            not what it may be.
    """
    arms = _optimizer_arms(recipes, spaces, optimizers) if optimizers else _recipe_arms(recipes, spaces)
    if seeds < 2:
        raise UserError(f"--seeds {seeds}: a spread needs at least 2, and few differences show with less than 5")
    if trials is None and budget is None:
        raise UserError("tuning needs an end, the same for all: give --trials, --budget, or both")
    if direction not in ("minimize", "maximize"):
        raise UserError(f"--direction {direction}: minimize or maximize")
    _same(arms, "tracking.uri", lambda recipe: recipe.tracking.uri)
    _same(arms, "tracking.experiment", lambda recipe: recipe.tracking.experiment)
    plan = Plan(
        name=_name(name, arms),
        storage=_same(arms, "storage", lambda recipe: recipe.storage),
        base=next(iter(arms)),
        arms={arm: _arm(recipe, names) for arm, (recipe, names) in arms.items()},
        metric=metric,
        direction=direction,
        trials=trials,
        budget=budget,
        sampler=sampler,
        policy=policy,
        seed=seed,
        seeds=_seeds((recipe for recipe, _ in arms.values()), seeds),
    )
    _check(plan)
    return _found(plan, _at_a_time(parallel), resume=resume)


def _recipe_arms(recipes: Sequence[Recipe], spaces: Sequence[str]) -> _Arms:
    names = [recipe.name for recipe in recipes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two recipes are called {twice!r}: give each a name of its own")
    if len(recipes) < 2:
        raise UserError("a comparison needs two recipes; or one, and --optimizers, for example adamw,adatamw")
    _refuse_unknown_arms(spaces, names)
    return {recipe.name: (recipe, _own(spaces, recipe.name) or ["auto"]) for recipe in recipes}


def _optimizer_arms(recipes: Sequence[Recipe], spaces: Sequence[str], optimizers: Sequence[str]) -> _Arms:
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


def _optimizers() -> list[str]:
    """Names of the spaces that are each one optimizer's."""
    found = {name: load_space(name).parameters.get("optimizer.name") for name in shipped()}
    return [name for name, fixed in found.items() if isinstance(fixed, Fixed) and name not in AROUND]


def _own(spaces: Sequence[str], arm: str) -> list[str]:
    """The spaces of an arm: those of all, and `arm=SPACE`."""
    pairs = [space.rpartition("=") for space in spaces]
    return [space for name, _, space in pairs if name in ("", arm)]


def _refuse_unknown_arms(spaces: Sequence[str], arms: Sequence[str]) -> None:
    for space in spaces:
        name, _, _ = space.rpartition("=")
        if name and name not in arms:
            raise UserError(f"--space {space}: {name!r} is none of {', '.join(arms)}")


def _name(name: str | None, arms: _Arms) -> str:
    made = name or "-vs-".join(arms)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", made):
        raise UserError(f"--name {made}: at most 100 letters, digits, `.`, `_` and `-`, the first a letter or a digit")
    if long := next((arm for arm in arms if len(arm) > LONGEST), None):
        raise UserError(f"{long!r} is longer than {LONGEST} letters: its studies' names are longer still")
    return made


def _same(arms: _Arms, field: str, value: Callable[[Recipe], str | None]) -> str:
    """What all recipes must agree on."""
    values = {arm: value(recipe) for arm, (recipe, _) in arms.items()}
    if len(set(values.values())) > 1:
        shown = ", ".join(f"{found} in {arm}" for arm, found in values.items())
        raise UserError(f"{field}: must be the same in all recipes, and is {shown}; set it by --set {field}=...")
    return str(next(iter(values.values())))


def _arm(recipe: Recipe, spaces: Sequence[str]) -> Arm:
    chosen_by, reported = _divided(recipe)
    return Arm(recipe=recipe, space=open_space(spaces, recipe).space, chosen_by=chosen_by, reported=reported)


def _divided(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of `evaluation` that use the first half of the held-out data, and those that use the second."""
    evaluation = recipe.evaluation
    if not hasattr(evaluation, "skip_sequences"):
        return {}, {}
    skipped, most = evaluation.skip_sequences, evaluation.max_sequences
    rows = _held_out(recipe.data.path) - skipped
    used = min(rows, most) if most is not None else rows
    if used < 2:
        raise UserError(
            f"the recipe {recipe.name!r} evaluates on {used} held-out sequence: one half is to choose by, another to "
            "report; prepare with more held out, or raise evaluation.max_sequences"
        )
    half = used // 2
    return (
        {"skip_sequences": skipped, "max_sequences": half},
        {"skip_sequences": skipped + half, "max_sequences": used - half},
    )


def _held_out(path: str) -> int:
    from lowland.trainers.data.store import manifest_of

    split = manifest_of(path).splits.get("held_out")
    if split is None or split.rows == 0:
        raise DataError(f"{path}: nothing is held out; prepare with another --held-out")
    return split.rows


def _seeds(recipes: Iterable[Recipe], number: int) -> tuple[int, ...]:
    """The first whole numbers that are no recipe's seed."""
    taken = {recipe.seed for recipe in recipes}
    return tuple(islice((seed for seed in count(1) if seed not in taken), number))


def _check(plan: Plan) -> None:
    """What a search is refused for."""
    from lowland.platform.search.choices import make_policy
    from lowland.platform.search.ledger import Budget
    from lowland.platform.search.setting import TICKS
    from lowland.platform.search.start import sampler_of

    make_policy(plan.policy, TICKS)
    if plan.budget is not None:
        Budget.parse(plan.budget)
    for arm in plan.arms:
        sampler_of(tuning(plan, arm))


def _at_a_time(parallel: str) -> int | None:
    if parallel == "auto":
        return None
    if not parallel.isdecimal() or int(parallel) == 0:
        raise UserError(f"--parallel {parallel}: auto or a number of trainings at a time")
    return int(parallel)


def _found(plan: Plan, parallel: int | None, *, resume: bool) -> Comparison:
    """The comparison in the folder, if it is this one; a new one where there is none."""
    there = read_comparison(plan.storage, plan.name)
    if there is None and resume:
        raise UserError(f"no comparison {plan.name!r} in {plan.storage} to go on with; leave --resume out to begin it")
    if there is None:
        if plan.folder.exists() and any(plan.folder.iterdir()):
            raise UserError(f"{plan.folder} holds something else than a comparison; choose another --name")
        return Comparison(plan=plan, parallel=parallel)
    if not resume:
        raise UserError(
            f"comparison {plan.name!r} exists ({there.status}); go on with it by --resume, or choose another --name"
        )
    if changes := there.plan.changes(plan):
        shown = "\n".join(f"  {change}" for change in changes)
        raise UserError(
            f"comparison {plan.name!r} is another one; give what it was begun with, or another --name:\n{shown}"
        )
    return there.with_(parallel=parallel)
