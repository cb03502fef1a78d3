"""A search before it runs: checked as far as it can be without a cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowland.platform.hub_data import with_commit
from lowland.platform.recipe import Recipe
from lowland.platform.search.ledger import Budget, Price
from lowland.platform.search.setting import JOURNAL, SETTING, TICKS, Setting, existing_study, read_setting
from lowland.platform.search.space_files import SpaceFile
from lowland.platform.search.storage import DATABASE, database_of, location, open_storage
from lowland.platform.tracking.store import resolve_uri
from lowland.platform.urls import redact, whole
from lowland.search_spaces import Space
from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from lowland.platform.search.policies import Policy
    from lowland.platform.search.study import Study


def begin(
    recipe: Recipe,
    spaces: Sequence[str],
    *,
    metric: str | Sequence[str] = "eval/loss",
    direction: str = "minimize",
    trials: int | None = None,
    budget: str | None = None,
    parallel: str = "auto",
    sampler: str | None = None,
    policy: str | None = None,
    first_rung: str | None = None,
    seed: int = 0,
    database: str | None = None,
    price: str | None = None,
    warm_start: Sequence[str] = (),
    related: bool = False,
    known_lr: str | None = None,
    constraints: Sequence[str] = (),
    intervals: int = 8,
    perturb: Sequence[str] = (),
) -> Setting:
    """A new search, checked as far as it can be without a cluster.

    Args:
        recipe: what trials change; its name is the study's.
        spaces: names or files; `auto` is made from the recipe.
        metric: what is compared, of an evaluation or a record, or `gpu-hours`, `cpu-hours` or `seconds` that a trial
            takes; several for a search of the best compromises, each with its direction as `eval/accuracy:maximize`.
        direction: `minimize` or `maximize`, of a single metric.
        trials: how many begin at most.
        budget: what may be spent, for example `40gpu-hours`.
        parallel: trials at a time; `auto` is as many as the cluster holds.
        sampler: see `lowland.platform.search.choices`; None is multi-fidelity, with several metrics tpe.
        policy: the same; None is promotion, with several metrics none.
        first_rung: where trials are first compared, as `12%` of a training; None is a seventeenth of it, or where the
            longest warm-up that trials may have is over.
        seed: of the sampler.
        database: where the trials lie, a URL or a journal file; None is a journal in the study's folder.
        price: of a GPU-hour, for example `2.5usd`; of a CPU-hour if trainings hold no GPUs.
        warm_start: earlier studies and MLflow runs, see `lowland.platform.search.earlier`.
        related: whether these are of another task, and tell where to look, rather than of this one.
        known_lr: a rate that is known for another training, see `lowland.platform.search.earlier.with_known_rate`.
        constraints: bounds that trials must keep, as `perf/gpu_memory_gib <= 70`.
        intervals: of a training, with policy `pbt`, whose population `trials` is.
        perturb: the parameters that copies change, with policy `pbt`; none is all that may change.

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
    from lowland.platform.search.compatibility import check, read_objectives
    from lowland.platform.search.first_rung import first_rung as rung_of
    from lowland.platform.search.space import open_space

    first, *others = read_objectives([metric] if isinstance(metric, str) else metric, direction)
    prices = Price.parse(price) if price is not None else None
    if budget is not None:
        Budget.parse(budget, prices)
    if database is not None:
        database = database_of(database)
        whole(redact(database), DATABASE)  # who goes on with the search needs its password
    recipe = with_commit(recipe)
    space = open_space(spaces, recipe).space if known_lr is None else _informed(spaces, recipe, known_lr)
    policy = policy or ("none" if others else "promotion")
    setting = Setting(
        recipe=recipe,
        space=space,
        metric=first.metric,
        direction=first.direction,
        trials=trials,
        budget=budget,
        parallel=_count(parallel),
        sampler=sampler or ("tpe" if others else "multi-fidelity"),
        policy=policy,
        first_rung=rung_of(first_rung, policy, space, recipe),
        seed=seed,
        tracking_uri=redact(resolve_uri(recipe.tracking, recipe.storage)),
        database=database,
        price=price,
        others=tuple(others),
        constraints=tuple(constraints),
        intervals=intervals,
        perturb=tuple(perturb),
    )
    if warm_start:
        from lowland.platform.search.earlier import warmed

        setting = warmed(setting, warm_start, related=related)
    elif related:
        raise UserError("--related says of which kind the trainings of --warm-start are: name some")
    check(setting)
    policy_of(setting)
    sampler_of(setting)
    if database is not None:
        _refuse_if_taken(setting)
    return setting


def _informed(spaces: Sequence[str], recipe: Recipe, known_lr: str) -> Space:
    from lowland.platform.search.earlier import with_known_rate
    from lowland.platform.search.space import BoundSpace, open_space

    space = with_known_rate(open_space(spaces, recipe).space, known_lr)
    return BoundSpace(SpaceFile(space, "--known-lr"), recipe).space


def _refuse_if_taken(setting: Setting) -> None:
    """A database may hold the studies of several folders."""
    storage = open_storage(setting)
    if setting.name in {study.study_name for study in storage.get_all_studies()}:
        there = _study(setting, storage)  # which refuses another space or direction
        if there.folder and not (Path(there.folder) / SETTING).is_file() and not there.trials():
            return  # its driver died before anything began
        raise UserError(
            f"study {setting.name!r} is in {location(setting)}, begun in {there.folder or 'no folder of lowland'}; "
            "go on with it by --resume and that storage, or choose another --name"
        )


def changed(
    storage: str, name: str, *, trials: int | None = None, budget: str | None = None, parallel: str = "auto"
) -> Setting:
    """A search that exists, to go on with; what is given replaces what it had.

    Raises:
        UserError: there is no such study.
    """
    from lowland.platform.search.compatibility import check_budget

    given = {"trials": trials, "budget": budget, "parallel": _count(parallel)}
    setting = existing_study(storage, name).with_(**{key: value for key, value in given.items() if value is not None})
    check_budget(setting)
    if setting.policy == "pbt" and trials not in (None, existing_study(storage, name).trials):
        raise UserError("--trials: the population of a search with --policy pbt stays as it began; leave it out")
    return setting


def _count(parallel: str) -> int | None:
    if parallel == "auto":
        return None
    if not parallel.isdecimal() or int(parallel) == 0:
        raise UserError(f"--parallel {parallel}: auto or a number of trials at a time")
    return int(parallel)


def sampler_of(setting: Setting, begun: int = 0) -> "BaseSampler":
    """The sampler of a search, for a study of so many trials.

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
        conditions=space.conditions(),
        unbounded=space.unbounded(),
        allowed=space.allowed,
        budget=_cost_budget(setting),
        begun=begun,
    )


def _cost_budget(setting: Setting) -> float | None:
    """The budget in what trials cost, if it can be told: of trials that hold GPUs those are what counts."""
    limit = setting.limit
    if limit is None or (limit.unit == "cpu-hours" and setting.recipe.scaling.gpus_per_worker):
        return None
    return limit.device_seconds


def policy_of(setting: Setting) -> "Policy":
    """The policy of a search.

    Raises:
        UserError: there is none of this name, or the space has nothing that it could change.
    """
    from lowland.platform.search.choices import make_policy

    if setting.policy != "pbt":
        return make_policy(setting.policy, TICKS, first=setting.first_rung)
    from lowland.platform.search.explore import Explorer
    from lowland.platform.search.population import Population

    explore = Explorer(setting.bound(), setting.perturb)
    return Population(TICKS, setting.trials or 0, explore, setting.intervals, setting.seed)


def open_study(setting: Setting) -> "Study":
    """The study of a search, from its storage, with the earlier trainings that it begins with.

    Raises:
        UserError: the study there is another one.
    """
    place = setting.database or str(setting.folder / JOURNAL)
    if "://" not in place:
        from lowland.platform.search.journal import mend

        # Other studies may be in a journal that was named, and a driver of another machine may still be alive.
        here = setting.driver is None or setting.driver.local()
        mend(Path(place), alone=setting.database is None and here)
    study = _study(setting, open_storage(setting))
    if setting.database is not None:
        _claim(study, setting)
    for training in setting.earlier:
        study.add(training)
    return study


def _claim(study: "Study", setting: Setting) -> None:
    """Of two searches that began at the same moment in one database, only one goes on."""
    folder = str(setting.folder)
    if study.folder not in ("", folder) and (Path(study.folder) / SETTING).is_file():
        raise UserError(f"study {setting.name!r} in {location(setting)} belongs to {study.folder}, not to {folder}")
    if study.folder != folder:
        study.begun_from(folder)


def _study(setting: Setting, storage: "BaseStorage") -> "Study":
    from lowland.platform.search.study import Study

    space, ids = setting.bound().distributions(), {s.study_name: s._study_id for s in storage.get_all_studies()}
    begun = storage.get_n_trials(ids[setting.name]) if setting.name in ids else 0
    sampler = sampler_of(setting, begun)
    return Study(storage, setting.name, space, setting.direction, sampler, setting.others, setting.bounds)
