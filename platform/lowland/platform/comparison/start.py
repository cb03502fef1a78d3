"""A comparison before it runs: checked as far as it can be without a cluster."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from lowland.platform.comparison.arms import Arms, optimizer_arms, recipe_arms
from lowland.platform.comparison.plan import Arm, Comparison, Plan, read_comparison
from lowland.platform.comparison.stages import tuning
from lowland.platform.hub_data import with_commit
from lowland.platform.recipe import ImageClassificationRecipe, Recipe
from lowland.platform.recipe.dump import flatten
from lowland.platform.runs import as_text
from lowland.platform.search.space import open_space
from lowland.trainers.errors import DataError, UserError
from lowland.trainers.recipe import EvaluationConfig

if TYPE_CHECKING:
    from lowland.trainers.data.manifest import Manifest

LONGEST = 92
"""Letters of an arm's name: its studies' names are longer, and a run's has at most 100."""


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
    arms = _arms(recipes, spaces, optimizers)
    if seeds < 2:
        raise UserError(f"--seeds {seeds}: a spread needs at least 2, and few differences show with less than 5")
    if trials is None and budget is None:
        raise UserError("tuning needs an end, the same for all: give --trials, --budget, or both")
    if direction not in ("minimize", "maximize"):
        raise UserError(f"--direction {direction}: minimize or maximize")
    _same(arms, "tracking.uri", lambda recipe: recipe.tracking.uri)
    _same(arms, "tracking.experiment", lambda recipe: recipe.tracking.experiment)
    storage, name = _same(arms, "storage", lambda recipe: recipe.storage), _name(name, arms)
    held = _held(storage, name) if resume else {}
    # The arms of `optimizers` share one recipe, and so one commit: the first arm's.
    recipes = [with_commit(recipe, held.get(arm)) for recipe, arm in zip(recipes, arms, strict=False)]
    arms = _arms(recipes, spaces, optimizers)
    plan = Plan(
        name=name,
        storage=storage,
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


def _arms(recipes: Sequence[Recipe], spaces: Sequence[str], optimizers: Sequence[str]) -> Arms:
    return optimizer_arms(recipes, spaces, optimizers) if optimizers else recipe_arms(recipes, spaces)


def _held(storage: str, name: str) -> dict[str, dict[str, str]]:
    """The fields of each arm's recipe in the comparison of this name, as texts."""
    there = read_comparison(storage, name)
    return {arm: as_text(flatten(one.recipe)) for arm, one in there.plan.arms.items()} if there is not None else {}


def _name(name: str | None, arms: Arms) -> str:
    made = name or "-vs-".join(arms)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", made):
        raise UserError(f"--name {made}: at most 100 letters, digits, `.`, `_` and `-`, the first a letter or a digit")
    if long := next((arm for arm in arms if len(arm) > LONGEST), None):
        raise UserError(f"{long!r} is longer than {LONGEST} letters: its studies' names are longer still")
    return made


def _same(arms: Arms, field: str, value: Callable[[Recipe], str | None]) -> str:
    """What all recipes must agree on."""
    values = {arm: value(recipe) for arm, (recipe, _) in arms.items()}
    if len(set(values.values())) > 1:
        shown = ", ".join(f"{found} in {arm}" for arm, found in values.items())
        raise UserError(f"{field}: must be the same in all recipes, and is {shown}; set it by --set {field}=...")
    return str(next(iter(values.values())))


def _arm(recipe: Recipe, spaces: Sequence[str]) -> Arm:
    space, evaluation = open_space(spaces, recipe).space, recipe.evaluation
    if not isinstance(evaluation, EvaluationConfig):
        return Arm(recipe=recipe, space=space, data=_place(recipe), chosen_by={}, reported={})
    data = _manifest(recipe.data.path)
    chosen_by, reported = _divided(recipe, evaluation, data.splits["held_out"].rows)
    return Arm(recipe=recipe, space=space, data=data.digest, chosen_by=chosen_by, reported=reported)


def _place(recipe: Recipe) -> str:
    """Where the data are that have no digest, held-out ones and the part of a data set of the hub included."""
    if not isinstance(recipe, ImageClassificationRecipe):
        return recipe.data.path
    data = recipe.data
    hub = [f"hub.{name}={value}" for name, value in data.hub.model_dump(exclude_defaults=True).items()]
    held_out = [f"held_out_path={data.held_out_path}"] if data.held_out_path is not None else []
    return ", ".join([data.path, *hub, *held_out])


def _divided(recipe: Recipe, evaluation: EvaluationConfig, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of `evaluation` that use the first half of the held-out data, and those that use the second."""
    skipped, most = evaluation.skip_sequences, evaluation.max_sequences
    rows -= skipped
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


def _manifest(path: str) -> "Manifest":
    from lowland.trainers.data.store import manifest_of

    manifest = manifest_of(path)
    if "held_out" not in manifest.splits:
        raise DataError(f"{path}: nothing is held out; prepare with another --held-out")
    return manifest


def _seeds(recipes: Iterable[Recipe], number: int) -> tuple[int, ...]:
    """The first whole numbers that are no recipe's seed."""
    taken = {recipe.seed for recipe in recipes}
    return tuple(islice((seed for seed in count(1) if seed not in taken), number))


def _check(plan: Plan) -> None:
    """What a search is refused for."""
    from lowland.platform.search.compatibility import check
    from lowland.platform.search.ledger import Budget
    from lowland.platform.search.start import policy_of, sampler_of

    if plan.policy == "pbt":
        raise UserError("--policy pbt: parameters that change on the way cannot be trained anew with other seeds")
    if plan.budget is not None:
        Budget.parse(plan.budget)
    for arm in plan.arms:
        setting = tuning(plan, arm)
        check(setting)
        policy_of(setting)
        sampler_of(setting)


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
        return Comparison(plan=plan, parallel=parallel, comparison_id=uuid4().hex)
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
