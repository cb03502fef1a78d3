"""What a comparison found, read from its storage alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from lowland.platform.comparison.plan import Plan
from lowland.platform.comparison.stages import SEED, failures, read_stage, untrained
from lowland.platform.comparison.statistics import (
    Interval,
    differences,
    expected_best,
    holm,
    interval,
    paired_t,
    sign_flips,
)
from lowland.platform.search.ledger import Ledger
from lowland.platform.search.results import StudyResult, TrialResult

LEVEL = 0.05
"""Chance of any false finding among all tests."""
EDGE = 0.02
"""Part of a range, on its scale, that is its edge."""


@dataclass(frozen=True)
class Against:
    """An arm against the base, seed by seed."""

    difference: Interval
    """The arm's values minus the base's."""
    better: int
    """Seeds with which the arm is better."""
    pairs: int
    t: float | None
    """P-value of the paired t-test; adjusted for the number of arms, as is the next."""
    flips: float
    """P-value of the permutation test over signs."""


@dataclass(frozen=True)
class ArmResult:
    """What became of an arm."""

    name: str
    tuning: StudyResult | None
    trained: StudyResult | None
    """The trainings with seeds."""
    values: Mapping[int, float]
    """By seed the reported metric."""
    without: int
    """Seeds that gave no number."""
    missing: Sequence[int]
    """Seeds whose training has not come to an end."""
    against: Against | None = None
    """None for the base, and without pairs."""

    @property
    def winner(self) -> TrialResult | None:
        """The best trial of the search."""
        return self.tuning.best if self.tuning is not None else None

    @property
    def studies(self) -> list[StudyResult]:
        """Those that began."""
        return [study for study in (self.tuning, self.trained) if study is not None]

    @property
    def lost(self) -> bool:
        """Whether the search found nothing since its trials failed."""
        return self.tuning is not None and self.winner is None and failures(self.tuning) > 0

    @property
    def mean(self) -> Interval | None:
        """The metric over seeds."""
        return interval(list(self.values.values())) if self.values else None

    @property
    def spent(self) -> Ledger | None:
        """What tuning took."""
        return self.tuning.ledger if self.tuning is not None else None

    @property
    def seconds(self) -> float | None:
        """Of a whole training, on average over seeds, evaluations and checkpoints included."""
        return _mean(max((a["training"] for a in t.accounts), default=0.0) for t in self._done)

    @property
    def memory(self) -> float | None:
        """Peak of a training's GPU memory on rank 0 in GiB, the largest over seeds; None on CPUs."""
        peak = max((a.get("gpu_memory", 0.0) for t in self._done for a in t.accounts), default=0.0)
        return peak or None

    @property
    def curve(self) -> list[float]:
        """The best of n trials, expected over orderings, by n - 1, as the metric gives it."""
        if self.tuning is None:
            return []
        sign = self.tuning.sign
        return [sign * best for best in expected_best(scores(self.tuning))]

    @property
    def at_edges(self) -> list[str]:
        """Parameters of the winner that lie at the end of their ranges: there the search may have missed the best."""
        if self.winner is None:
            return []
        found = self.winner.parameters
        return [name for name, held in self.winner.distributions.items() if name in found and _edge(held, found[name])]

    @property
    def reasons(self) -> list[str]:
        """Why seeds gave no number, each once: `diverged`, `out of memory`, `refused`."""
        trials = self.trained.trials if self.trained is not None else ()
        without = [trial for trial in trials if trial.unusable and trial.parameters.get(SEED) not in self.values]
        return sorted({trial.reason.partition(":")[0] for trial in without if trial.reason})

    @property
    def _done(self) -> list[TrialResult]:
        trials = self.trained.trials if self.trained is not None else ()
        return [trial for trial in trials if trial.parameters.get(SEED) in self.values]


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison as it stands."""

    plan: Plan
    arms: Sequence[ArmResult]
    """The base first."""

    @property
    def base(self) -> ArmResult:
        """What the others are compared with."""
        return self.arms[0]

    def verdict(self, arm: ArmResult) -> str:
        """What can be said of an arm."""
        if _untuned(arm):
            return "tuning failed" if arm.lost else "no trial gave a value"
        if arm.missing:
            return "not finished"
        if arm.without:
            return self._without(arm)
        if arm is self.base:
            return "base"
        if self.base.missing and (self.base.lost or not _untuned(self.base)):
            return "not finished"
        if self.base.without:
            return f"{self.base.name}: {self._without(self.base)}"
        if arm.against is None or arm.against.t is None:
            return "nothing to compare with"
        if arm.against.t >= LEVEL:
            return "not told apart"
        return "better" if (arm.against.difference.mean < 0) == (self.plan.direction == "minimize") else "worse"

    def _without(self, arm: ArmResult) -> str:
        reasons = f" ({', '.join(arm.reasons)})" if arm.reasons else ""
        return f"{arm.without} of {len(self.plan.seeds)} gave no number{reasons}"


def read_result(plan: Plan) -> ComparisonResult:
    """Reads a comparison from its studies' folders; Neither Ray nor MLflow need to be there."""
    arms = [_arm(plan, name) for name in plan.ordered]
    tests = [_test(plan, arm, arms[0]) for arm in arms]
    return ComparisonResult(
        plan, [replace(arm, against=found) for arm, found in zip(arms, _adjusted(tests), strict=True)]
    )


def scores(study: StudyResult) -> list[float]:
    """What each trial of a search came to, lower is better; infinite without a number, nothing for failures."""
    own = [trial for trial in study.trials if not trial.source and trial.curve]
    return [math.inf if trial.value is None else study.sign * trial.value for trial in own]


def _arm(plan: Plan, name: str) -> ArmResult:
    trained = read_stage(plan, name, "seeds")
    values = dict[int, float]()
    missing: Sequence[int] = plan.seeds
    if trained is not None:
        whole = [t for t in trained.trials if t.status == "finished" and t.reached == trained.full]
        values = {int(t.parameters[SEED]): t.value for t in whole if t.value is not None}
        missing = untrained(plan, trained)
    without = len(plan.seeds) - len(values) - len(missing)
    return ArmResult(name, read_stage(plan, name, "tuning"), trained, dict(sorted(values.items())), without, missing)


def _test(plan: Plan, arm: ArmResult, base: ArmResult) -> Against | None:
    found = differences(arm.values, base.values)
    if arm is base or not found:
        return None
    sign = 1 if plan.direction == "minimize" else -1
    better = sum(sign * difference < 0 for difference in found)
    return Against(interval(found), better, len(found), paired_t(found), sign_flips(found))


def _adjusted(tests: Sequence[Against | None]) -> list[Against | None]:
    """The tests with p-values adjusted for their number."""
    held = [test for test in tests if test is not None]
    by_t = holm([test.t for test in held if test.t is not None])
    by_flips = holm([test.flips for test in held])
    t, flips = iter(by_t), iter(by_flips)
    return [test and replace(test, t=None if test.t is None else next(t), flips=next(flips)) for test in tests]


def _untuned(arm: ArmResult) -> bool:
    """Whether the search ended and found nothing."""
    setting = arm.tuning.setting if arm.tuning is not None else None
    return setting is not None and setting.status == "finished" and arm.winner is None


def _mean(values: Any) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _edge(distribution: Any, value: Any) -> bool:
    low, high = getattr(distribution, "low", None), getattr(distribution, "high", None)
    if low is None or high is None or low == high:
        return False
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return not EDGE < (value - low) / (high - low) < 1 - EDGE
