"""How much each parameter decides, and how sure that is."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, create_trial

from lowland.platform.search.objectives import Direction
from lowland.platform.search.results import FEWEST, StudyResult, TrialResult
from lowland.search_spaces import Unbounded


@dataclass(frozen=True)
class Importance:
    """A parameter's share of what all parameters decide."""

    parameter: str
    mean: float
    deviation: float
    """Standard deviation over resamples of the trials; as large as the mean, nothing is known."""


def importances(result: StudyResult, resamples: int = 32, seed: int = 0) -> list[Importance]:
    """The importances of the parameters, the largest first; none if there are fewer than 8 trials, or all equally good.

    PED-ANOVA (Watanabe et al., arXiv 2304.10255): how differently a parameter is distributed in the best trials, a
    tenth of all but at least five, than in all of them.  It sees no interaction of parameters.  Trials are compared
    at `result.common`; trials without a number there, because their parameters gave none, count as the worst.

    Args:
        result: the study.
        resamples: bootstrap samples of its trials, in each of which shares add up to 1.
        seed: of the samples.
    """
    scored = _scored(result)
    if len(scored) < FEWEST or len({trial.value for trial in scored}) == 1:
        return []
    generator = np.random.default_rng(seed)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(scored))))
    drawn = generator.integers(len(scored), size=(resamples, len(scored)))
    shares = [_shares(evaluator, [scored[i] for i in rows]) for rows in drawn]
    names = list(scored[0].params) + [n for n in result.parameters if n not in scored[0].params]
    table = {name: [share.get(name, 0.0) for share in shares] for name in names}
    found = [Importance(name, float(np.mean(values)), float(np.std(values, ddof=1))) for name, values in table.items()]
    return sorted(found, key=lambda importance: -importance.mean)


def tried_ranges(result: StudyResult) -> dict[str, BaseDistribution]:
    """The range of what was tried of every parameter without ends.

    Those that storage has lie so far away that all trials would be at one place of the range.
    """
    entries = result.setting.space.entries() if result.setting is not None else []
    found = dict[str, BaseDistribution]()
    for entry in entries:
        values = [t.parameters[entry.name] for t in result.trials if entry.name in t.parameters]
        if isinstance(entry.parameter, Unbounded) and values:
            kind = FloatDistribution if entry.parameter.multiple is None else IntDistribution
            found[entry.name] = kind(min(values), max(values), log=True)
    return found


def scratch_study(direction: Direction, trials: Iterable[FrozenTrial]) -> optuna.Study:
    """A study in memory; Optuna says nothing of it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(storage=InMemoryStorage(), direction=direction)
    finally:
        optuna.logging.set_verbosity(before)
    study.add_trials(trials)
    return study


def _scored(result: StudyResult) -> list[FrozenTrial]:
    """Trials with what each is worth, lower is better."""
    resource = result.common
    values = [_worth(trial, resource, result.sign) for trial in result.trials]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    worst = max(finite, default=0.0) + 1.0
    ranges = tried_ranges(result)
    return [
        create_trial(
            params=dict(trial.parameters),
            distributions={name: ranges.get(name, held) for name, held in trial.distributions.items()},
            value=min(value, worst),
        )
        for trial, value in zip(result.trials, values, strict=True)
        if value is not None
    ]


def _worth(trial: TrialResult, resource: int, sign: float) -> float | None:
    if trial.unusable and trial.reached <= resource:
        return math.inf
    value = trial.curve.get(resource)
    return None if value is None else sign * value if math.isfinite(value) else math.inf


def _shares(evaluator: PedAnovaImportanceEvaluator, trials: Sequence[FrozenTrial]) -> Mapping[str, float]:
    study = scratch_study("minimize", trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an alternative that hardly any trial chose
        raw = evaluator.evaluate(study)
    whole = sum(raw.values())
    return {name: value / whole for name, value in raw.items()} if whole > 0 else dict.fromkeys(raw, 1 / len(raw))
