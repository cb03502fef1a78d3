"""Every combination of finite parameters, one after the other."""

from collections import Counter
from collections.abc import Mapping
from itertools import product
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from lowland.trainers.errors import UserError


class GridSampler(BaseSampler):
    """Proposes the combination that the fewest trials have, the first of several in the space's order.

    Trials that failed are made up for, but after all others.  Optuna's own sampler takes them for done, and stops a
    study itself.

    Args:
        space: choices, whole numbers, and floats with a step.

    Raises:
        UserError: a parameter has no finite number of values.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self._names = list(space)
        self._combinations = list(product(*(_values(name, space[name]) for name in self._names)))

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
        chosen = [trial.params[name] for name in self._names if name in trial.params]
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        begun = Counter(tuple(other.params.get(name) for name in self._names) for other in others)
        failed = Counter(
            tuple(other.params.get(name) for name in self._names) for other in others if other.state == TrialState.FAIL
        )
        left = [combination for combination in self._combinations if list(combination[: len(chosen)]) == chosen]
        return min(left, key=lambda one: (begun[one] - failed[one], begun[one]))[place]


def _values(name: str, distribution: BaseDistribution) -> list[Any]:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return list(choices)
        case IntDistribution(low=low, high=high, step=step):
            return list(range(low, high + 1, step))
        case FloatDistribution(low=low, high=high, step=float(step)):
            return [low + index * step for index in range(round((high - low) / step) + 1)]
        case _:
            raise UserError(f"--sampler grid: {name} has no finite number of values; give it a step or choices")
