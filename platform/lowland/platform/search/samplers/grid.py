"""Every combination of finite parameters, one after the other."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from lowland.platform.search.samplers.encoding import Conditions
from lowland.trainers.errors import UserError


class GridSampler(BaseSampler):
    """Proposes the combination that the fewest trials have, the first of several in the space's order.

    Trials that failed are made up for, but after all others.  Optuna's own sampler takes them for done, and stops a
    study itself.  A parameter that does not count, given the alternatives that are chosen, has its first value.

    Args:
        space: choices, whole numbers, and floats with a step.
        conditions: of parameters that count in some alternatives only, `Entry.where`.
        allowed: whether parameters may be tried; asked once for every combination.

    Raises:
        UserError: a parameter has no finite number of values, or no combination is allowed.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        *,
        conditions: Conditions | None = None,
        allowed: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        self._names, self._conditions = list(space), conditions or {}
        values = {name: _values(name, distribution) for name, distribution in space.items()}
        self._first = {name: found[0] for name, found in values.items()}
        whole = [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]
        self._combinations = [
            tuple(one.values())
            for one in whole
            if self._key(one) == tuple(one.values()) and (allowed is None or allowed(one))
        ]
        if not self._combinations:
            raise UserError(f"--sampler grid: none of {len(whole)} combinations keeps the constraints of the space")

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: a combination is known by the trial, parameter by parameter."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The parameter's value in the least tried combination that has the values the trial has already."""
        place = self._names.index(param_name)
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        begun = Counter(self._key(other.params) for other in others)
        failed = Counter(self._key(other.params) for other in others if other.state == TrialState.FAIL)
        chosen = [(at, trial.params[name]) for at, name in enumerate(self._names) if name in trial.params]
        left = [one for one in self._combinations if all(one[at] == value for at, value in chosen)]
        return min(left, key=lambda one: (begun[one] - failed[one], begun[one]))[place]

    def _key(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """The combination that trains what these parameters train."""
        return tuple(
            parameters.get(name) if self._counts(name, parameters) else self._first[name] for name in self._names
        )

    def _counts(self, name: str, parameters: Mapping[str, Any]) -> bool:
        return all(parameters.get(branch) == alternative for branch, alternative in self._conditions.get(name, ()))


def _values(name: str, distribution: BaseDistribution) -> list[Any]:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return list(choices)
        case IntDistribution(low=low, high=high, step=step):
            return list(range(low, high + 1, step))
        case FloatDistribution(low=low, high=high, step=float(step)):
            return [min(low + index * step, high) for index in range(round((high - low) / step) + 1)]
        case _:
            raise UserError(f"--sampler grid: {name} has no finite number of values; give it a step or choices")
