"""What a search found, read from its storage alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from lowland.platform.search.jobs import UNUSABLE
from lowland.platform.search.ledger import SEGMENTS, Ledger, Price, device_seconds, total
from lowland.platform.search.objectives import Bound, Direction, Objective, front
from lowland.platform.search.search import END
from lowland.platform.search.setting import TICKS, Setting, existing_study
from lowland.platform.search.storage import begun, open_storage
from lowland.platform.search.stored import MEASURED, NOTE, REASON, WORST, broken_at, status_of
from lowland.platform.search.trials import ORIGIN, SOURCE, TARGET, Origin, Status
from lowland.search_spaces import Space

FEWEST = 8
"""Trials below which nothing is said of parameters."""


@dataclass(frozen=True)
class TrialResult:
    """One trial, its values as the metric gives them."""

    number: int
    status: Status
    parameters: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    curve: Mapping[int, float]
    """The metric by resource; infinite where it was not a number."""
    target: int
    """The resource at which its latest segment ends."""
    reason: str
    """Why it has no value; may be empty."""
    source: str
    """Where it comes from, if it is an earlier training that the search was told of; else empty."""
    accounts: Sequence[Mapping[str, Any]]
    """What each of its segments took."""
    cost: float
    """GPU-seconds, or CPU-seconds without GPUs; 0 if nobody kept account."""
    began: datetime | None
    ended: datetime | None
    measured: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """By resource, further metrics and those that are bounded."""
    breaks: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """By resource, the bounds that it broke, with what was measured."""
    origin: Origin | None = None
    """Where its weights come from, if it was forked from another trial."""

    @property
    def begun_at(self) -> int:
        """The resource at which it began: 0, or where it was forked."""
        return self.origin.resource if self.origin is not None else 0

    @property
    def reached(self) -> int:
        """The largest resource with a measurement; before the first, where it began."""
        return max(self.curve, default=self.begun_at)

    @property
    def broken(self) -> Sequence[str]:
        """The bounds that it breaks where its training has come to."""
        return self.breaks.get(self.reached, ())

    @property
    def value(self) -> float | None:
        """The metric where its training has come to; None without a usable one."""
        value = self.curve.get(self.reached, math.inf)
        return value if _usable(value) else None

    @property
    def unusable(self) -> bool:
        """Whether the training gave no number, which is what its parameters are worth."""
        return bool(self.curve) and self.value is None


@dataclass(frozen=True)
class StudyResult:
    """A search and its trials.

    Args:
        name: of the study.
        metric: what was measured.
        direction: whether it is to fall or to rise.
        full: the resource of a whole training.
        trials: by number.
        setting: what was searched; None for a study that was not begun by `lowland tune`.
    """

    name: str
    metric: str
    direction: Direction
    full: int
    trials: Sequence[TrialResult]
    setting: Setting | None = None

    @property
    def sign(self) -> float:
        """What makes lower values better."""
        return 1.0 if self.direction == "minimize" else -1.0

    @property
    def objectives(self) -> list[Objective]:
        """All metrics that are compared, the first one first."""
        return [Objective(self.metric, self.direction), *(self.setting.others if self.setting is not None else ())]

    @cached_property
    def front(self) -> list[TrialResult]:
        """With several metrics, the whole trainings that keep all bounds and that no other beats in all metrics."""
        points = {t.number: self._point(t) for t in self.trials if t.reached == self.full and not t.broken}
        known = {number: point for number, point in points.items() if all(map(_usable, point))}
        chosen = set(front(known)) if len(self.objectives) > 1 else set()
        return sorted((t for t in self.trials if t.number in chosen), key=self._order)

    @cached_property
    def ranked(self) -> list[TrialResult]:
        """Trials with a value, the best first.

        Those that break a bound come last; whole trainings come before others, whose values say less; with several
        metrics the front comes first.
        """
        on_front = {trial.number for trial in self.front}

        def key(trial: TrialResult) -> tuple[bool, bool, bool, float, int]:
            return bool(trial.broken), trial.number not in on_front, *self._order(trial)

        return sorted((trial for trial in self.trials if trial.value is not None), key=key)

    @property
    def best(self) -> TrialResult | None:
        """The first of the ranked that breaks no bound."""
        return next((trial for trial in self.ranked if not trial.broken), None)

    @cached_property
    def replaced(self) -> set[int]:
        """Numbers of the trials that were given up for copies of better ones."""
        return {trial.origin.replaces for trial in self.trials if trial.origin is not None}

    def _order(self, trial: TrialResult) -> tuple[bool, float, int]:
        return trial.reached < self.full, self.sign * (trial.value or 0.0), trial.number

    def _point(self, trial: TrialResult) -> list[float]:
        """Its metrics where its training has come to, lower is better."""
        values = {**trial.measured.get(trial.reached, {}), self.metric: trial.curve.get(trial.reached, math.inf)}
        return [objective.sign * values.get(objective.metric, math.inf) for objective in self.objectives]

    @property
    def common(self) -> int:
        """The largest resource at which at least half of the trials with values were measured, and at least eight if
        there are so many; 0 without any.

        There they are compared: the further a trial was trained, the better its value, whatever its parameters.
        """
        counts: dict[int, int] = {}
        for trial in self.ranked:
            for resource in trial.curve:
                counts[resource] = counts.get(resource, 0) + 1
        least = max(len(self.ranked) / 2, FEWEST if len(self.ranked) >= FEWEST else 0)
        return max((resource for resource, count in counts.items() if count >= least), default=0)

    @property
    def trainings(self) -> float:
        """How many whole trainings the measured parts of all trials make."""
        return sum(trial.reached - trial.begun_at for trial in self.trials if not trial.source) / self.full

    @property
    def ledger(self) -> Ledger | None:
        """What its workers spent; None if nobody kept account, or of the time alone, as under virtual time."""
        held = [list(trial.accounts) for trial in self.trials if all("step" in account for account in trial.accounts)]
        return total(held) if any(held) else None

    @property
    def price(self) -> Price | None:
        """Of a device-hour; None if nobody gave one."""
        return self.setting.prices if self.setting is not None else None

    @property
    def updated(self) -> datetime | None:
        """When a trial last began or ended."""
        times = [time for trial in self.trials for time in (trial.began, trial.ended) if time is not None]
        return max(times, default=None)

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters, in the order of the first trials."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.parameters))


def read_study(storage: str, name: str) -> StudyResult:
    """Reads a study from its folder.

    Args:
        storage: folder that holds it.
        name: of the study.

    Raises:
        UserError: there is no such study.
    """
    setting = existing_study(storage, name)
    trials = trials_in(open_storage(setting), name, setting.bounds) if begun(setting) else []
    counting = [_counting(trial, setting.space) for trial in trials]
    return StudyResult(name, setting.metric, setting.direction, TICKS, counting, setting)


def trials_in(storage: BaseStorage, name: str, bounds: Sequence[Bound] = ()) -> list[TrialResult]:
    """The trials of a study in any Optuna storage, by number; none if the study is not there."""
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:  # a search that ended before its first trial
        return []
    return [_result(trial, bounds) for trial in storage.get_all_trials(study_id, deepcopy=False)]


def _counting(trial: TrialResult, space: Space) -> TrialResult:
    """The trial without parameters of alternatives that it did not choose."""
    names = {entry.name for entry in space.entries() if entry.active(trial.parameters)}
    parameters = {name: value for name, value in trial.parameters.items() if name in names}
    distributions = {name: trial.distributions[name] for name in parameters}
    return replace(trial, parameters=parameters, distributions=distributions)


def _result(trial: FrozenTrial, bounds: Sequence[Bound]) -> TrialResult:
    attributes = trial.user_attrs
    measured = attributes.get(NOTE + MEASURED, {})
    accounts = attributes.get(NOTE + SEGMENTS, [])
    return TrialResult(
        number=trial.number,
        status=status_of(trial),
        parameters=trial.params,
        distributions=trial.distributions,
        curve=trial.intermediate_values,
        target=attributes.get(TARGET, 0),
        reason=attributes.get(REASON) or _why(attributes),
        source=attributes.get(SOURCE, ""),
        accounts=accounts,
        cost=sum(map(device_seconds, accounts)),
        began=trial.datetime_start,
        ended=trial.datetime_complete,
        measured={int(resource): values for resource, values in measured.items()},
        breaks=broken_at(bounds, attributes),
        origin=Origin(**attributes[ORIGIN]) if ORIGIN in attributes else None,
    )


def _why(attributes: Mapping[str, Any]) -> str:
    """What became of parameters that cannot be trained."""
    end, message = attributes.get(NOTE + END, ""), attributes.get(NOTE + "message", "")
    return f"{end}: {message}" if end in UNUSABLE else ""


def _usable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < WORST
