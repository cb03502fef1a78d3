"""A search before it runs: checked as far as it can be without a cluster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowland.platform.recipe import Recipe
from lowland.platform.search.ledger import Budget
from lowland.platform.search.setting import JOURNAL, TICKS, Setting, existing_study, read_setting
from lowland.platform.tracking.store import redact, resolve_uri
from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from lowland.platform.search.study import Study


def begin(
    recipe: Recipe,
    spaces: Sequence[str],
    *,
    metric: str = "eval/loss",
    direction: str = "minimize",
    trials: int | None = None,
    budget: str | None = None,
    parallel: str = "auto",
    sampler: str = "multi-fidelity",
    policy: str = "promotion",
    seed: int = 0,
) -> Setting:
    """A new search, checked as far as it can be without a cluster.

    Args:
        recipe: what trials change; its name is the study's.
        spaces: names or files; `auto` is made from the recipe.
        metric: what is compared, of an evaluation or a record.
        direction: `minimize` or `maximize`.
        trials: how many begin at most.
        budget: what may be spent, for example `40gpu-hours`.
        parallel: trials at a time; `auto` is as many as the cluster holds.
        sampler: see `lowland.platform.search.choices`.
        policy: the same.
        seed: of the sampler.

    Raises:
        UserError: the study's name is taken, or something is not what it may be.
    """
    there = read_setting(recipe.storage, recipe.name)
    if there is not None:
        raise UserError(
            f"study {recipe.name!r} exists ({there.status}); go on with it by --resume, or choose another --name"
        )
    if trials is None and budget is None:
        raise UserError("a search needs an end: give --trials, --budget, or both")
    if direction not in ("minimize", "maximize"):
        raise UserError(f"--direction {direction}: minimize or maximize")
    from lowland.platform.search.choices import make_policy
    from lowland.platform.search.space import open_space

    make_policy(policy, TICKS)
    if budget is not None:
        Budget.parse(budget)
    setting = Setting(
        recipe=recipe,
        space=open_space(spaces, recipe).space,
        metric=metric,
        direction=direction,
        trials=trials,
        budget=budget,
        parallel=_count(parallel),
        sampler=sampler,
        policy=policy,
        seed=seed,
        tracking_uri=redact(resolve_uri(recipe.tracking, recipe.storage)),
    )
    sampler_of(setting)
    return setting


def changed(
    storage: str, name: str, *, trials: int | None = None, budget: str | None = None, parallel: str = "auto"
) -> Setting:
    """A search that exists, to go on with; what is given replaces what it had.

    Raises:
        UserError: there is no such study.
    """
    given = {"trials": trials, "budget": budget, "parallel": _count(parallel)}
    return existing_study(storage, name).with_(**{key: value for key, value in given.items() if value is not None})


def _count(parallel: str) -> int | None:
    if parallel == "auto":
        return None
    if not parallel.isdecimal() or int(parallel) == 0:
        raise UserError(f"--parallel {parallel}: auto or a number of trials at a time")
    return int(parallel)


def sampler_of(setting: Setting) -> "BaseSampler":
    """The sampler of a search.

    Raises:
        UserError: there is none of this name.
    """
    from lowland.platform.search.choices import make_sampler

    space = setting.bound()
    distributions = space.distributions()
    return make_sampler(
        setting.sampler,
        distributions,
        TICKS,
        setting.seed,
        priors=space.priors(),
        conditions={e.name: e.where for e in space.space.entries() if e.name in distributions and e.where},
        allowed=space.allowed,
    )


def open_study(setting: Setting) -> "Study":
    """The study of a search, from its journal.

    Raises:
        UserError: the study there is another one.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from lowland.platform.search.study import Study

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    setting.folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(setting.folder / JOURNAL)))
    space = setting.bound().distributions()
    return Study(storage, setting.name, space, setting.direction, sampler_of(setting))
