"""The state of a search: an Optuna study in durable storage, and nothing beside it.

Paused trials, segments under way and rungs are read from it at any time, so that a driver that died
loses nothing.  Optuna's samplers see it as any other study.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from lowland.platform.search.policies import Policy
from lowland.platform.search.trials import PAUSED, SOURCE, TARGET, Segment, Status, TrialView
from lowland.platform.search.warm_start import Earlier
from lowland.trainers.errors import UserError

Direction = Literal["minimize", "maximize"]

REASON = "lowland:reason"
_SPACE, NOTE = "lowland:space", "lowland:note:"
WORST = 1e308
"""Stands for infinity in a finished trial: Optuna's samplers want numbers."""


class Study:
    """One search.

    Args:
        storage: where its state lies; one owner writes at a time.
        name: it is found by this.
        space: the parameters, as Optuna's distributions.
        direction: whether the metric is to fall or to rise.
        sampler: proposes parameters.

    Raises:
        UserError: a study of this name is there with another space or direction.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Mapping[str, BaseDistribution],
        direction: Direction,
        sampler: BaseSampler,
    ) -> None:
        self.name, self.direction, self._storage = name, direction, storage
        self._space = dict(space)
        self._sign = 1.0 if direction == "minimize" else -1.0
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction=direction, sampler=sampler, load_if_exists=True
        )
        self._id = storage.get_study_id_from_name(name)
        self._guard()

    def _guard(self) -> None:
        """Optuna itself would go on with the old direction and mix the spaces without a word."""
        described = {key: repr(value) for key, value in sorted(self._space.items())}
        there = self._study.user_attrs.get(_SPACE)
        if self._study.direction.name.lower() != self.direction:
            raise UserError(
                f"study '{self.name}' exists and is to {self._study.direction.name.lower()}, this search to "
                f"{self.direction} its metric; give it another name"
            )
        if there is None:
            self._study.set_user_attr(_SPACE, described)
        elif there != described:
            changed = sorted(key for key in {*there, *described} if there.get(key) != described.get(key))
            shown = "; ".join(
                f"{key}: {there.get(key, 'absent')} there, {described.get(key, 'absent')} here" for key in changed
            )
            raise UserError(f"study '{self.name}' exists with another search space ({shown}); give it another name")

    def trials(self) -> list[TrialView]:
        """All trials, by number."""
        return [self._view(trial) for trial in self._storage.get_all_trials(self._id, deepcopy=False)]

    def trial(self, number: int) -> TrialView:
        """One trial."""
        return self._view(self._storage.get_trial(self._trial_id(number)))

    def next(self, policy: Policy) -> Segment:
        """What a free worker is to do: go on with a paused trial, or begin one that the sampler proposes."""
        segment = policy.resume(self.trials())
        if segment is None:
            number = self._study.ask(self._space).number
            segment = Segment(number, 0, policy.begin(number))
        self._begin(segment)
        return segment

    def report(self, number: int, resource: int, value: float) -> None:
        """Records a measurement; one that is already there stays, and NaN is the worst value."""
        trial_id = self._trial_id(number)
        if resource not in self._storage.get_trial(trial_id).intermediate_values:
            worst = math.inf * self._sign
            self._storage.set_trial_intermediate_value(trial_id, resource, worst if math.isnan(value) else value)

    def ended(self, number: int, policy: Policy) -> Segment | None:
        """A segment has ended, with its measurement reported; the next one of the same trial if it is to go on."""
        trial = self.trial(number)
        if trial.target >= policy.full:
            value = trial.curve[trial.reached] * self._sign
            self._study.tell(number, value if math.isfinite(value) else math.copysign(WORST, value))
            return None
        verdict = "stop" if math.isinf(trial.curve[trial.target]) else policy.after(trial, self.trials())
        if verdict == "stop":
            self._study.tell(number, state=TrialState.PRUNED)  # its value is the last measurement
            return None
        if verdict == "pause":
            self._storage.set_trial_user_attr(self._trial_id(number), PAUSED, True)
            return None
        segment = Segment(number, trial.target, policy.beyond(trial.target))
        self._begin(segment)
        return segment

    def resume(self, number: int, policy: Policy) -> Segment:
        """Goes on with a paused trial, whatever the policy would do."""
        target = self.trial(number).target
        segment = Segment(number, target, policy.beyond(target))
        self._begin(segment)
        return segment

    def add(self, training: Earlier) -> None:
        """Takes an earlier training of the same task and space for a trial that was stopped where it ended."""
        worst = math.inf * self._sign
        trial = optuna.trial.create_trial(
            state=TrialState.PRUNED,
            value=None,
            params=dict(training.parameters),
            distributions={key: self._space[key] for key in training.parameters},
            intermediate_values={r: worst if math.isnan(v) else v for r, v in training.curve.items()},
            user_attrs={TARGET: max(training.curve), SOURCE: training.source},
        )
        self._study.add_trial(trial)

    def fail(self, number: int, reason: str) -> None:
        """Gives up a trial that has no value for a reason that is not its parameters'."""
        self._storage.set_trial_user_attr(self._trial_id(number), REASON, reason)
        self._study.tell(number, state=TrialState.FAIL)

    def note(self, number: int, name: str, value: Any) -> None:
        """Keeps something (plain data) with a trial."""
        self._storage.set_trial_user_attr(self._trial_id(number), NOTE + name, value)

    def notes(self, number: int) -> dict[str, Any]:
        """What was kept with a trial."""
        attributes = self._storage.get_trial(self._trial_id(number)).user_attrs
        return {key.removeprefix(NOTE): value for key, value in attributes.items() if key.startswith(NOTE)}

    def close(self) -> None:
        """The search is over: trials that still wait are told as pruned, with what they reached."""
        for trial in self.trials():
            if trial.status == "paused":
                self._study.tell(trial.number, state=TrialState.PRUNED)

    def _begin(self, segment: Segment) -> None:
        trial_id = self._trial_id(segment.trial)
        self._storage.set_trial_user_attr(trial_id, TARGET, segment.end)
        self._storage.set_trial_user_attr(trial_id, PAUSED, False)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _view(self, trial: FrozenTrial) -> TrialView:
        curve = {step: value * self._sign for step, value in trial.intermediate_values.items()}
        target = trial.user_attrs.get(TARGET, 0)
        return TrialView(trial.number, trial.params, curve, status_of(trial), target)

    @property
    def sampled(self) -> Sequence[str]:
        """Names of the parameters."""
        return list(self._space)


def status_of(trial: FrozenTrial) -> Status:
    """How a trial stands, from what storage has of it."""
    match trial.state:
        case TrialState.COMPLETE:
            return "finished"
        case TrialState.PRUNED:
            return "stopped"
        case TrialState.FAIL:
            return "failed"
        case _:
            return "paused" if trial.user_attrs.get(PAUSED) else "running"
