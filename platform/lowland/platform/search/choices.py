"""Samplers and policies by the names that users give them."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler

from lowland.platform.search.policies import Fixed, Hyperband, Median, Policy, Promotion, Stopping, default_first
from lowland.platform.search.samplers.encoding import Conditions
from lowland.platform.search.samplers.grid import GridSampler
from lowland.platform.search.samplers.multi_fidelity import Aim, MultiFidelitySampler
from lowland.search_spaces import Prior, Unbounded
from lowland.trainers.errors import UserError

POLICIES = ("promotion", "stopping", "median", "fixed", "hyperband", "pbt", "none")
AIMS: dict[str, Aim] = {"multi-fidelity": "quality", "cost-aware": "quality per cost", "pareto": "pareto"}
SAMPLERS = (*AIMS, "random", "quasi-random", "tpe", "cmaes", "gp", "nsga2", "grid")
DRAW_ANEW = ("random", "tpe", "cmaes", "gp", "nsga2")
"""Samplers whose first proposals are the next numbers of a generator, whatever the study has."""


def make_sampler(
    name: str,
    space: Mapping[str, BaseDistribution],
    full: int,
    seed: int | None = None,
    *,
    priors: Mapping[str, Prior] | None = None,
    conditions: Conditions | None = None,
    unbounded: Mapping[str, Unbounded] | None = None,
    allowed: Callable[[Mapping[str, Any]], bool] | None = None,
    budget: float | None = None,
    begun: int = 0,
) -> BaseSampler:
    """The sampler of this name.

    Args:
        name: "multi-fidelity" (the default of a search), with the cost in mind "cost-aware" or "pareto", or one of
            Optuna's: "random", "quasi-random", "tpe", "cmaes", "gp", "nsga2", which know nothing of priors; or "grid",
            each combination of finite parameters; or "package.module:Name", your own, called as
            Name(space, full=..., seed=...).
        space: the parameters.
        full: resource of a whole training.
        seed: of everything random.
        priors: as `MultiFidelitySampler` takes them, and the following.
        conditions: of parameters that count in some alternatives only.
        unbounded: the parameters without ends, which "pareto" alone can take.
        allowed: whether parameters may be tried.
        budget: the study's, in the unit of costs.
        begun: trials that the study has: a sampler that begins with draws from its seed would repeat them.

    Raises:
        UserError: there is none of this name, or it needs a package that is not installed.
    """
    if name in AIMS:
        return MultiFidelitySampler(
            space,
            full,
            seed=seed,
            priors=priors,
            conditions=conditions,
            unbounded=unbounded,
            allowed=allowed,
            aim=AIMS[name],
            budget=budget,
        )
    if ":" in name:
        return _own(name, space, full, seed)
    if seed is not None and begun and name in DRAW_ANEW:
        seed = int(np.random.SeedSequence((seed, begun)).generate_state(1)[0])
    match name:
        case "random":
            return optuna.samplers.RandomSampler(seed)
        case "quasi-random" | "qmc":
            return optuna.samplers.QMCSampler(scramble=True, seed=seed)
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        case "cmaes":
            return _cma_es(seed)
        case "gp":
            return optuna.samplers.GPSampler(seed=seed)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "grid":
            return GridSampler(space, conditions=conditions, allowed=allowed)
        case _:
            raise UserError(f"--sampler {name}: there are {', '.join(SAMPLERS)}; your own is named package.module:Name")


def _own(name: str, space: Mapping[str, BaseDistribution], full: int, seed: int | None) -> BaseSampler:
    """A sampler that the user wrote: a class or function that is called with the space, `full` and `seed`."""
    module, _, target = name.partition(":")
    try:
        make = getattr(import_module(module), target)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--sampler {name}: {error}; install its package, or name its folder in PYTHONPATH") from error
    try:
        made = make(space, full=full, seed=seed)
    except TypeError as error:
        raise UserError(
            f"--sampler {name}: it is called as {target}(space, full={full}, seed={seed}): {error}"
        ) from error
    if not isinstance(made, BaseSampler):
        raise UserError(f"--sampler {name}: must give an optuna.samplers.BaseSampler, not a {type(made).__name__}")
    return made


def _cma_es(seed: int | None) -> BaseSampler:
    if find_spec("cmaes") is None:
        raise UserError("--sampler cmaes needs a package: pip install cmaes")
    return optuna.samplers.CmaEsSampler(seed=seed)


def make_policy(name: str, full: int, *, first: int = 0, factor: int = 3) -> Policy:
    """The policy of this name.

    Args:
        name: one of `POLICIES` but "pbt", which needs the space (`start.policy_of`); "none" trains every trial whole.
        full: the resource of a whole training.
        first: the first rung; 0 is a seventeenth of `full`.
        factor: of each rung's trials, one in `factor` goes on; has no meaning for "median", "fixed" and "none".

    Raises:
        UserError: there is none of this name.
    """
    match name:
        case "promotion":
            return Promotion(full, first, factor)
        case "stopping":
            return Stopping(full, first, factor)
        case "hyperband":
            return Hyperband(full, first, factor)
        case "median":
            return Median(full, first)
        case "fixed":
            return Fixed(full, first or default_first(full))
        case "none":
            return Fixed(full, full)
        case _:
            raise UserError(f"--policy {name}: there are {', '.join(POLICIES)}")
