"""A multi-fidelity Gaussian-process sampler: short trainings tell which long ones are worth having."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lowland.platform.search.samplers.acquisition import Cost, Feasibility, log_improvement
from lowland.platform.search.samplers.beliefs import Beliefs
from lowland.platform.search.samplers.candidates import Candidates
from lowland.platform.search.samplers.encoding import Conditions, Encoding
from lowland.platform.search.samplers.gaussian_process import Array, GaussianProcess
from lowland.platform.search.samplers.observations import (
    Observations,
    by_distance,
    by_rank,
    cost,
    is_running,
    observe,
    rate,
    usable,
)
from lowland.platform.search.samplers.pareto import drawn, front_value
from lowland.platform.search.trials import TARGET
from lowland.search_spaces import Prior, Unbounded

Aim = Literal["quality", "quality per cost", "pareto"]

_BELIEF = 5.0
"""Beta of piBO: after so many trials a belief weighs as much as the expected improvement."""
_NEAR, _REPEATED = 0.003, 1e6
"""Distance in every parameter below which a point is one that was tried, and what its worth loses.

It would be measured where that one was and wait beside it: more is known by going on with that one.
"""
_EXPLORED = 8
"""One in so many later trials is drawn at random: some searches would circle about a place that is not the best."""
_BOLD = 0.3
"""Standard deviations by which a proposal is to be better than the best, on average, for each trial under way."""
_FORMS = (by_rank, by_distance)
"""What measurements count by, in turns."""


class MultiFidelitySampler(BaseSampler):
    """Proposes what is expected to improve most on the best full training.

    A Gaussian process is fitted to measurements at all resources (`Trial.report`, step = resource) of all trials,
    running ones included; the proposal maximises

        log EI(x) + t (beta / n) log prior(x) + log P(usable | x) - a log cost(x)

    with EI the expected improvement at the full resource over the best mean of what was tried, n the trials so far,
    beta = 5 (piBO, Hvarfner et al., arXiv 2204.11051) and t the trust in the prior: the rank correlation, beyond
    chance, of what it says of the trials and what they are like, so that a wrong prior is soon left.  One trial in
    eight is random.  Measurements count by their rank and by the logarithm of their distance to the best, in turns:
    the process is right about some tasks in the one form and about others in the other, and some trials know it.
    Running trials count as if their segments ended where the model expects it, so that parallel proposals differ.
    That makes the model sure of itself; so EI is then over the best less a margin, which is drawn for each proposal
    from an exponential distribution: the larger it is, the more uncertainty counts (as with the random kappa of
    DeepHyper, Egele et al., arXiv 2207.00479).
    Trials with infinite values or broken constraints are unusable.  Costs come from the trials' accounts
    (`observations.COSTS`).

    Parameters without ends are looked for around one trial, drawn evenly along the front of expected quality and
    logarithmic cost, as far as their factors say (the idea of CARBS, Fetterman et al., arXiv 2306.08055), so that the
    front may lead anywhere; what would cost more than is left of the budget is not proposed.

    Spaces that are mostly categorical are left to Optuna's TPE.  A proposal costs O(n^3) in the measurements;
    `benchmarks/search_efficiency.py` prints its seconds.

    Args:
        space: the parameters.
        full: resource of a whole training.
        startup: trials before the model is asked: quasi-random, every fourth one from the priors if there are any.
        seed: of everything random.
        priors: beliefs about good values, by parameter.
        conditions: of parameters that count in some alternatives only, `Entry.where`.
        unbounded: the parameters without ends.
        allowed: whether parameters may be tried.
        aim: "quality"; "quality per cost" divides the improvement by cost^a, where a falls from 1 to 0 as `budget`
            is spent; "pareto" wants improvement over the best that any trial of at most the same cost gave.
        budget: cost after which it no longer matters; None keeps a = 1, and lets parameters without ends grow.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        full: int,
        *,
        startup: int | None = None,
        seed: int | None = None,
        priors: Mapping[str, Prior] | None = None,
        conditions: Conditions | None = None,
        unbounded: Mapping[str, Unbounded] | None = None,
        allowed: Callable[[Mapping[str, Any]], bool] | None = None,
        aim: Aim = "quality",
        budget: float | None = None,
    ) -> None:
        self._encoding, self._full = Encoding(space, conditions, unbounded), full
        self._startup = startup if startup is not None else max(4, min(10, self._encoding.dimensions + 1))
        self._generator = np.random.default_rng(seed)
        self._beliefs = Beliefs(self._encoding, priors or {})
        self._candidates = Candidates(self._encoding, self._beliefs, self._generator, allowed or (lambda _: True))
        self._tpe = TPESampler(seed=seed)
        categorical = sum(isinstance(d, CategoricalDistribution) for d in space.values())
        self._mostly_categorical = 2 * categorical > len(space) and not unbounded
        self._aim, self._budget = aim, budget
        self._thetas = dict[int, Array]()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The space it was made with."""
        return {name: d for name, d in self._encoding.space.items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and t.params]
        measured = sum(bool(t.intermediate_values) for t in trials)
        if len(trials) < self._startup or measured < 3:
            return self._encoding.decode(self._candidates.initial(trial.number))
        if trial.number % _EXPLORED == 0:
            usables = self._encoding.encode([t.params for t in trials if usable(t) is not False])
            return self._encoding.decode(self._candidates.random(around=usables))
        if self._mostly_categorical:
            return self._tpe.sample_relative(study, trial, search_space)
        return self._propose(trials, observe(self._encoding, study, trials), trial.number % len(_FORMS))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Parameters outside the space."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, trials: Sequence[FrozenTrial], seen: Observations, form: int) -> dict[str, Any]:
        inputs = np.column_stack([seen.points, self._fidelity(seen.resources)])
        process = GaussianProcess.fit(inputs, _FORMS[form](seen.values), self._thetas.get(form))
        self._thetas[form] = process.theta
        if running := [t for t in trials if is_running(t)]:
            process = process.believing(self._ends(running))
        tried = self._encoding.encode([t.params for t in trials])
        means = process.predict(self._at_full(tried))[0]
        costs, weight = self._cost(trials, tried)
        centres, least = tried[np.argsort(means)[:4]], None
        if self._encoding.unbounded.any():
            centres, least = self._member(trials, tried, means, costs)
        # Searches for other aims are not known to gain by a margin.
        bold = running and self._aim == "quality"
        margin = self._generator.exponential(_BOLD * len(running)) if bold else 0.0
        value = self._worth(trials, tried, means, process, costs, weight, least, margin)
        held = tried[[t.state != TrialState.FAIL for t in trials]]  # where a worker died nothing can go on

        def worth(points: Array) -> Array:
            if not len(held):
                return value(points)
            near: Array = np.abs(points[:, None] - held[None]).max(2).min(1) < _NEAR
            return value(points) - _REPEATED * near

        return self._encoding.decode(self._candidates.best(worth, centres))

    def _member(
        self, trials: Sequence[FrozenTrial], tried: Array, means: Array, costs: Cost | None
    ) -> tuple[Array, float | None]:
        """A trial of the front as a row, and the logarithm of what a unit of it costs; the best while none is known."""
        good = [i for i, t in enumerate(trials) if usable(t) is not False] or list(range(len(trials)))
        if costs is None:
            return tried[good[int(means[good].argmin())]][None], None
        rates = costs.log_rate(tried)
        chosen = good[drawn(rates[good], means[good], self._generator)]
        return tried[chosen][None], float(rates[chosen])

    def _ends(self, running: Sequence[FrozenTrial]) -> Array:
        """Where the segments under way end.

        Beliefs at the full resource instead would make the model sure of what short trainings will hardly tell.
        """
        targets = [t.user_attrs.get(TARGET) or self._full for t in running]
        points = self._encoding.encode([t.params for t in running])
        return np.column_stack([points, self._fidelity(np.array(targets, float))])

    def _worth(
        self,
        trials: Sequence[FrozenTrial],
        tried: Array,
        means: Array,
        process: GaussianProcess,
        costs: Cost | None = None,
        weight: float = 0.0,
        least: float | None = None,
        margin: float = 0.0,
    ) -> Callable[[Array], Array]:
        """The logarithm of what a proposal is worth, as a function of points."""
        belief = _BELIEF / len(trials) * self._beliefs.trust(tried, means) if self._beliefs else 0.0
        fates = [usable(t) for t in trials]
        good = np.array([fate is not False for fate in fates])
        most = self._dearest(trials)
        feasibility = None
        if not good.all():
            known = np.array([fate is not None for fate in fates])
            feasibility = Feasibility(tried[known], good[known].astype(float))
            if good.any():
                means, tried = means[good], tried[good]

        def worth(points: Array) -> Array:
            mean, deviation = process.predict(self._at_full(points))
            best: Array | float = float(means.min()) - margin
            if costs is not None and self._aim == "pareto":
                best = front_value(costs.log_rate(tried), means, costs.log_rate(points), self._generator, least)
            total = log_improvement(best, mean, deviation)
            if belief:
                total += belief * self._beliefs.log_density(points)
            if feasibility is not None:
                total += feasibility.log_probability(points)
            if costs is not None and weight:
                total -= weight * costs.log_rate(points)
            if costs is not None and least is not None:
                total -= _REPEATED * np.maximum(costs.log_rate(points) - most, 0.0)
            return total

        return worth

    def _cost(self, trials: Sequence[FrozenTrial], tried: Array) -> tuple[Cost | None, float]:
        """The model of costs and the power of the cost in what a proposal is worth."""
        rates = [(point, rate(t)) for point, t in zip(tried, trials, strict=True)]
        known = [(point, found) for point, found in rates if found is not None]
        if self._aim == "quality" or len(known) < 3:
            return None, 0.0
        model = Cost(np.array([p for p, _ in known]), np.array([r for _, r in known]))
        if self._aim == "pareto":
            return model, 0.0
        spent = sum(map(cost, trials)) / self._budget if self._budget else 0.0
        return model, max(0.0, 1.0 - spent)

    def _dearest(self, trials: Sequence[FrozenTrial]) -> float:
        """The logarithm of what a unit of a training may cost that the rest of the budget pays for."""
        left = math.inf if self._budget is None else max(self._budget - sum(map(cost, trials)), 1e-9)
        return math.log(left / self._full)

    def _at_full(self, points: Array) -> Array:
        return np.column_stack([points, np.ones(len(points))])

    def _fidelity(self, resources: Array) -> Array:
        scaled: Array = np.log1p(resources) / np.log1p(self._full)
        return scaled
