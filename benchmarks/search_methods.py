"""The searches that are compared."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from search_curves import CurveTable, LCBench

from lowland.platform.search.policies import Fixed, Policy, Promotion, Stopping
from lowland.platform.search.samplers import MultiFidelitySampler
from lowland.platform.search.samplers.encoding import Encoding
from lowland.search_spaces import Prior
from lowland.search_spaces.priors import confidence

Curves = LCBench | CurveTable
Priors = Mapping[str, Mapping[str, Prior]]
Search = tuple[BaseSampler, Policy, bool]
"""Sampler, policy, and whether stopped trials are told as complete."""
PRIOR_METHODS = ("ours, good prior", "ours, wrong prior")
COST_BASE = "cost: tpe"
COST_METHODS = (COST_BASE, "cost: ours", "cost: ours per cost", "cost: ours pareto")
"""The first is what the others are compared with."""
_DRAWN, _DEVIATION = 1000, 0.15


def _plain(make: Callable[[int], BaseSampler], policy: Callable[[int], Policy], as_tune: bool = False) -> Any:
    return lambda curves, seed, priors: (make(seed), policy(curves.full), as_tune)


def _ours(prior: str = "", **options: Any) -> Any:
    def make(curves: Curves, seed: int, priors: Priors) -> Search:
        sampler = MultiFidelitySampler(
            curves.space, curves.full, seed=seed, priors=priors[prior] if prior else None, **options
        )
        return sampler, Promotion(curves.full), False

    return make


def _whole(full: int) -> Policy:
    return Fixed(full, full)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


METHODS: Mapping[str, Callable[[Curves, int, Priors], Search]] = {
    "random": _plain(_random, _whole),
    "fixed-3": _plain(_random, lambda full: Fixed(full, 3)),
    "tpe": _plain(_tpe, _whole),
    "tpe+asha-1": _plain(_tpe, lambda full: Stopping(full, 1), as_tune=True),
    "tpe+asha-3": _plain(_tpe, lambda full: Stopping(full, 3), as_tune=True),
    "ours": _ours(),
    PRIOR_METHODS[0]: _ours("good"),
    PRIOR_METHODS[1]: _ours("wrong"),
    COST_BASE: _plain(_tpe, _whole),
    COST_METHODS[1]: _ours(),
    COST_METHODS[2]: _ours(aim="quality per cost"),
    COST_METHODS[3]: _ours(aim="pareto"),
}


def priors_of(curves: Curves, task: str) -> Priors:
    """A good prior, near the best of 1000 random trainings, and a wrong one, about the worst.

    The good centre is off by a normal error of as much as the prior admits, 0.15 of each range.
    """
    generator = np.random.default_rng(int(hashlib.sha256(task.encode()).hexdigest()[:8], 16))
    encoding = Encoding(curves.space)
    points = encoding.snap(encoding.random(_DRAWN, generator))
    sign = 1.0 if curves.direction == "minimize" else -1.0
    last = np.array([sign * curves.values(encoding.decode(p), 0, curves.full)[-1] for p in points])
    best, worst = points[int(last.argmin())], points[int(last.argmax())]
    off = np.clip(best + generator.normal(0, _DEVIATION, best.shape), 0, 1)
    return {"good": _about(encoding, curves.space, off), "wrong": _about(encoding, curves.space, worst)}


def _about(encoding: Encoding, space: Mapping[str, BaseDistribution], point: Any) -> dict[str, Prior]:
    return {
        name: Prior(centre=centre, confidence=confidence(_DEVIATION)) for name, centre in encoding.decode(point).items()
    }
