"""The state of a search: an Optuna study in durable storage, and nothing beside it.

Paused trials, segments under way and rungs are read from it at any time, so that a driver that died
loses nothing.  Optuna's samplers see it as any other study.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from lowland.platform.search.ledger import SEGMENTS, TRAINED
from lowland.platform.search.objectives import Bound, Direction, Objective
from lowland.platform.search.policies import Policy
from lowland.platform.search.stored import BEFORE, MEASURED, NOTE, REASON, broken_at, view_of, worst
from lowland.platform.search.trials import ORIGIN, PAUSED, SOURCE, TARGET, Earlier, Fork, Segment, TrialView
from lowland.trainers.errors import UserError

__all__ = ["Study"]

_SPACE, _FOLDER = "lowland:space", "lowland:folder"


class Study:
    """One search.

    Args:
        storage: where its state lies; one owner writes at a time.
        name: it is found by this.
        space: the parameters, as Optuna's distributions.
        direction: whether the metric is to fall or to rise.
        sampler: proposes parameters.
        others: metrics besides the first one.
        bounds: that trials must keep.  One that breaks a bound where its segment ends is stopped there.

    Raises:
        UserError: a study of this name is there with another space or other directions.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Mapping[str, BaseDistribution],
        direction: Direction,
        sampler: BaseSampler,
        others: Sequence[Objective] = (),
        bounds: Sequence[Bound] = (),
    ) -> None:
        self.name, self.direction, self._storage = name, direction, storage
        self._space, self._others, self._bounds = dict(space), tuple(others), tuple(bounds)
        self._sign = 1.0 if direction == "minimize" else -1.0
        self._directions = [direction, *(other.direction for other in others)]
        self._study = optuna.create_study(
            storage=storage, study_name=name, directions=self._directions, sampler=sampler, load_if_exists=True
        )
        self._id = storage.get_study_id_from_name(name)
        self._guard()

    def _guard(self) -> None:
        """Optuna itself would go on with the old direction and mix the spaces without a word."""
        described = {key: repr(value) for key, value in sorted(self._space.items())}
        there = self._study.user_attrs.get(_SPACE)
        directions = [direction.name.lower() for direction in self._study.directions]
        if directions != self._directions:
            metrics = "metrics" if self._others else "metric"
            raise UserError(
                f"study '{self.name}' exists and is to {', '.join(directions)}, this search to "
                f"{', '.join(self._directions)} its {metrics}; give it another name"
            )
        if there is None and self._study.get_trials(deepcopy=False):
            raise UserError(f"study '{self.name}' exists and was not begun by lowland; give it another name")
        if there is None:
            self._study.set_user_attr(_SPACE, described)
        elif there != described:
            changed = sorted(key for key in {*there, *described} if there.get(key) != described.get(key))
            shown = "; ".join(
                f"{key}: {there.get(key, 'absent')} there, {described.get(key, 'absent')} here" for key in changed
            )
            raise UserError(f"study '{self.name}' exists with another search space ({shown}); give it another name")

    @property
    def folder(self) -> str:
        """The folder that it was begun from; empty if that was not written down."""
        return str(self._study.user_attrs.get(_FOLDER, ""))

    def begun_from(self, folder: str) -> None:
        """Writes down the folder: several may share a database."""
        self._study.set_user_attr(_FOLDER, folder)

    def trials(self) -> list[TrialView]:
        """All trials, by number."""
        return [self._view(trial) for trial in self._storage.get_all_trials(self._id, deepcopy=False)]

    def trial(self, number: int) -> TrialView:
        """One trial."""
        return self._view(self._storage.get_trial(self._trial_id(number)))

    def next(self, policy: Policy) -> Segment:
        """What a free worker is to do: go on with a paused trial, or begin one that the sampler proposes."""
        chosen = policy.resume(self.trials())
        if isinstance(chosen, Fork):
            return self._fork(chosen)
        if chosen is None:
            number = self._study.ask(self._space).number
            chosen = Segment(number, 0, policy.begin(number))
        self._begin(chosen)
        return chosen

    def report(self, number: int, resource: int, value: float) -> None:
        """Records a measurement; one that is already there stays, and NaN is the worst value."""
        trial_id = self._trial_id(number)
        if resource not in self._storage.get_trial(trial_id).intermediate_values:
            worst = math.inf * self._sign
            self._storage.set_trial_intermediate_value(trial_id, resource, worst if math.isnan(value) else value)

    def measure(self, number: int, resource: int, values: Mapping[str, float]) -> None:
        """Keeps what was measured besides the first metric; before `report`, which makes it count."""
        there = self.notes(number).get(MEASURED, {})
        self.note(number, MEASURED, {**there, str(resource): dict(values)})

    def broken(self, number: int, resource: int) -> list[str]:
        """The bounds that a trial broke at a resource, with what was measured."""
        attributes = self._storage.get_trial(self._trial_id(number)).user_attrs
        return broken_at(self._bounds, attributes).get(resource, [])

    def ended(self, number: int, policy: Policy) -> Segment | None:
        """A segment has ended, with its measurement reported; the next one of the same trial if it is to go on."""
        trial = self.trial(number)
        if trial.target >= policy.full:
            self._finish(trial)
            return None
        verdict = "stop" if math.isinf(trial.curve[trial.target]) else policy.after(trial, self.trials())
        if verdict == "stop":
            self.stop(number)
            return None
        if verdict == "pause":
            self._storage.set_trial_user_attr(self._trial_id(number), PAUSED, trial.target)
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

    def stop(self, number: int) -> None:
        """Gives up a trial; its value is its last measurement."""
        self._constrain(self.trial(number))
        self._study.tell(number, state=TrialState.PRUNED)

    def replaced(self) -> list[int]:
        """Paused trials whose places others have taken: they are to be stopped."""
        trials = self.trials()
        gone = {trial.origin.replaces for trial in trials if trial.origin is not None}
        return [trial.number for trial in trials if trial.status == "paused" and trial.number in gone]

    def add(self, training: Earlier) -> None:
        """Takes an earlier training of the same task and space for a trial that was stopped where it ended; once."""
        if training.source in {trial.source for trial in self.trials()}:
            return
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

    def _finish(self, trial: TrialView) -> None:
        """Tells Optuna the values of a whole training; of one without numbers the worst that others had."""
        self._constrain(trial)
        first = self._storage.get_trial(self._trial_id(trial.number)).intermediate_values[trial.target]
        measured = self.notes(trial.number).get(MEASURED, {}).get(str(trial.target), {})
        values = [first, *(measured.get(other.metric, math.nan) for other in self._others)]
        if not all(map(math.isfinite, values)):
            values = worst(self._study.get_trials(deepcopy=False), self._directions)
        self._study.tell(trial.number, values)

    def _constrain(self, trial: TrialView) -> None:
        """Tells Optuna by how much a trial breaks each bound; it can be told once, when the trial ends."""
        if not self._bounds:
            return
        held = optuna.trial.Trial(self._study, self._trial_id(trial.number))
        measured = self.notes(trial.number).get(MEASURED, {}).get(str(trial.target))
        for bound in self._bounds:
            if str(bound) not in held.constraints:
                held.set_constraint(str(bound), bound.excess(measured[bound.metric]) if measured is not None else 1.0)

    def _fork(self, fork: Fork) -> Segment:
        """Begins a trial from another one's checkpoint, in one write."""
        origin, notes = fork.origin, self.notes(fork.origin.parent)
        last, before = (notes.get(SEGMENTS) or [{}])[-1], notes.get(BEFORE, {})
        trained = {name: last.get(name, 0.0) + before.get(name, 0.0) for name in TRAINED}
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(fork.parameters),
            distributions={key: self._space[key] for key in fork.parameters},
            user_attrs={TARGET: fork.end, ORIGIN: asdict(origin), NOTE + BEFORE: trained},
        )
        number = self._storage.get_trial(self._storage.create_new_trial(self._id, template_trial=trial)).number
        return Segment(number, origin.resource, fork.end)

    def _begin(self, segment: Segment) -> None:
        self._storage.set_trial_user_attr(self._trial_id(segment.trial), TARGET, segment.end)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _view(self, trial: FrozenTrial) -> TrialView:
        return view_of(trial, self._sign, self._bounds)

    @property
    def sampled(self) -> Sequence[str]:
        """Names of the parameters."""
        return list(self._space)
