"""A search step by step: which segment is next, and what an ended one leads to.

It knows neither Ray nor MLflow: `begin` makes a segment's job and `tell` hears what became of a trial.  All state is
the study's, so that a search that died goes on from its storage.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from lowland.platform.search.jobs import UNUSABLE, Job, Outcome
from lowland.platform.search.ledger import SEGMENTS, Budget, Ledger, account, since, total
from lowland.platform.search.objectives import costs
from lowland.platform.search.policies import Policy
from lowland.platform.search.population import Population
from lowland.platform.search.stored import BEFORE, MEASURED
from lowland.platform.search.study import Study
from lowland.platform.search.trials import Origin, Segment, TrialView
from lowland.trainers.errors import LowlandError, RunError, UserError

END = "end"
"""Name of the note of a trial that tells how its last segment ended."""
FAILURES = 3
"""Failures one after another that end a search: what fails then is hardly the trials."""
REFUSALS = 64
"""Proposals in a row that may break the space's constraints."""
Answer = Literal["wait", "over"]


class Runs(Protocol):
    """Trials as runs; `lowland.platform.search.trial_runs.TrialRuns`."""

    def begin(self, segment: Segment, parameters: Mapping[str, Any], origin: Origin | None) -> Job:
        """The job of a segment, of a trial that may have been forked."""

    def ended(self, number: int, outcome: Outcome, fate: Any) -> None:
        """What became of a trial."""

    def rests(self, number: int) -> None:
        """A trial that is paused does not go on in this search."""

    def replaced(self, number: int) -> None:
        """A paused trial is given up, since another one takes its place."""

    def settle(self, number: int, outcome: Outcome, fate: Any) -> None:
        """What became of a trial by the study; its run may not have been told, if a driver died meanwhile."""


class Search:
    """Decides for one driver.

    Args:
        study: its state.
        policy: how far trials are trained.
        runs: trials as runs.
        why_not: what is wrong with parameters, before anything is trained.
        metric: of a training's latest evaluation or record, or of `objectives.COSTS`.
        also: what else is kept of each, for further objectives and bounds.
        most: trials that begin at most; None is without limit.
        budget: what may be spent; None is without limit.
        hear: told in a line what happened.
    """

    def __init__(
        self,
        study: Study,
        policy: Policy,
        runs: Runs,
        why_not: Callable[[Mapping[str, Any]], list[str]],
        *,
        metric: str,
        most: int | None,
        budget: Budget | None,
        also: Sequence[str] = (),
        hear: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.study, self._policy, self._runs, self._why_not = study, policy, runs, why_not
        self._metric, self._also, self._budget, self._hear = metric, tuple(also), budget, hear
        self._most = policy.most if most is None else most
        self.problem: LowlandError | None = None
        """Why the search cannot go on."""
        self._stopping = False
        self._failures = 0
        self._ended = False
        self.running: dict[int, tuple[Segment, Job]] = {}
        self._settle_runs()
        self._give_up_replaced()
        self._due = self._left()

    @property
    def stopping(self) -> bool:
        """Whether nothing begins any more, though trials would be left."""
        return self._stopping or self.problem is not None

    def stop(self) -> None:
        """Lets nothing begin any more."""
        self._stopping = True

    def next(self) -> tuple[Segment, Job] | Answer:
        """The segment that a free worker is to train."""
        for _ in range(REFUSALS):
            segment = self._choose()
            if not isinstance(segment, Segment):
                return segment
            trial = self.study.trial(segment.trial)
            wrong = self._why_not(trial.parameters) if segment.start == 0 else []
            if wrong:
                self._settle(segment, Outcome("refused", "; ".join(wrong)))
                continue
            job = self._runs.begin(segment, trial.parameters, trial.origin)
            self.running[segment.trial] = segment, job
            return segment, job
        self.problem = UserError(f"{REFUSALS} proposals in a row break the constraints of the space; narrow its ranges")
        return "over"

    def ended(self, number: int, outcome: Outcome) -> None:
        """Takes how a trial's segment has ended."""
        segment, job = self.running.pop(number)
        notes = self.study.notes(number)
        spent = since(account(segment, job, outcome, self._policy.full), notes.get(BEFORE, {}))
        self.study.note(number, SEGMENTS, [*notes.get(SEGMENTS, []), spent])
        if outcome.end == "interrupted":
            self._runs.ended(number, outcome, "interrupted")
            return
        measured = {**outcome.result.get("metrics", {}), **costs([*notes.get(SEGMENTS, []), spent])}
        if outcome.end == "reached" and not {self._metric, *self._also} <= set(measured):
            self._miss(measured)
            self._runs.ended(number, outcome, "interrupted")
            return
        fate = self._settle(segment, outcome, measured)
        self._runs.ended(number, outcome, fate)
        self._count_failures(outcome)

    def ledger(self) -> Ledger:
        """What was spent."""
        return total([self.study.notes(t.number).get(SEGMENTS, []) for t in self.study.trials()])

    def share(self) -> float | None:
        """How much of the budget or of the trials is done; None if neither is limited."""
        shares = []
        if self._budget is not None:
            shares.append(self.ledger().spent(self._budget) / self._budget.amount)
        if isinstance(self._policy, Population):
            shares.append(self._policy.share(self.study.trials()))
        elif self._most is not None:
            shares.append(sum(bool(t.curve) for t in self._begun()) / self._most)
        return min(max(shares), 1.0) if shares else None

    def _choose(self) -> Segment | Answer:
        if self.stopping:
            return "wait" if self.running else self._over(for_good=False)
        if self._budget is not None and self.ledger().spent(self._budget) >= self._budget.amount:
            return "wait" if self.running else self._over(for_good=True)
        if self._due:
            return self._due.pop(0)
        if self._finishing():
            return "wait" if self.running else self._last() or self._over(for_good=True)
        full = self._most is not None and len(self._begun()) >= self._most
        if not full or self._policy.resume(self.study.trials()) is not None:
            segment = self.study.next(self._policy)
            self._give_up_replaced()
            return segment
        if self.running:
            return "wait"
        return self._last() or self._over(for_good=True)

    def _finishing(self) -> bool:
        """Whether all that is left of the budget is needed to train one trial whole, where none was yet."""
        if self._budget is None or isinstance(self._policy, Population) or (best := self._furthest()) is None:
            return False
        full = self._policy.full
        under_way = sum(segment.end - segment.start for segment, _ in self.running.values())
        return full * self.ledger().trainings_left(self._budget) <= full - best.target + under_way

    def _last(self) -> Segment | None:
        """If no trial was trained whole: the best of those that came furthest goes on."""
        best = self._furthest()
        return self.study.resume(best.number, self._policy) if best is not None else None

    def _furthest(self) -> TrialView | None:
        """The best of the paused trials that came furthest; None if a trial was trained whole."""
        trials = self.study.trials()
        paused = [t for t in trials if t.status == "paused"]
        if not paused or any(t.status == "finished" for t in trials):
            return None
        return min(paused, key=lambda t: (-t.target, t.curve[t.target], t.number))

    def _over(self, *, for_good: bool) -> Answer:
        """Closes the runs of trials that might go on; in storage they still may, if the search is resumed."""
        waiting = [trial for trial in self.study.trials() if trial.status == "paused"] if for_good else []
        if not self._ended:
            for segment in self._due:
                self._runs.settle(segment.trial, Outcome("interrupted"), "interrupted")
            for trial in waiting:
                self._runs.rests(trial.number)
        self._ended = True
        return "over"

    def _begun(self) -> list[TrialView]:
        """All trials that this search began to train."""
        own = [trial for trial in self.study.trials() if not trial.source and trial.origin is None]
        return [t for t in own if t.target > 0 and not t.refused]

    def _give_up_replaced(self) -> None:
        for number in self.study.replaced() if isinstance(self._policy, Population) else ():
            self._runs.replaced(number)
            self.study.stop(number)

    def _settle_runs(self) -> None:
        for trial in self.study.trials():
            if trial.status != "running" and not trial.source:
                end = self.study.notes(trial.number).get(END, "reached")
                self._runs.settle(trial.number, Outcome(end), "failed" if end in UNUSABLE else trial.status)

    def _left(self) -> list[Segment]:
        """The segments that a driver left when it ended; a trial that it had only half proposed is given up."""
        running = [trial for trial in self.study.trials() if trial.status == "running"]
        for trial in running:
            if trial.target == 0:
                self.study.fail(trial.number, "the search ended while it was proposed")
        return [Segment(t.number, t.reached, t.target) for t in running if t.target > 0]

    def _settle(self, segment: Segment, outcome: Outcome, measured: Mapping[str, float] | None = None) -> Any:
        """Writes a result or a failure to the study; what becomes of the trial."""
        number = segment.trial
        self.study.note(number, END, outcome.end)
        if outcome.message:
            self.study.note(number, "message", outcome.message)
        if outcome.end == "failed":
            self.study.fail(number, outcome.message)
            self._hear(f"trial {number} failed: {outcome.message}")
            return "failed"
        value = measured[self._metric] if outcome.end == "reached" and measured is not None else math.nan
        if self._also and measured is not None and outcome.end == "reached":
            self.study.measure(number, segment.end, {name: measured[name] for name in self._also})
        self.study.report(number, segment.end, value)
        following = self.study.ended(number, self._policy)
        if following is not None:
            self._due.append(following)
            fate = "goes on"
        else:
            fate = {"paused": "paused", "finished": "finished"}.get(self.study.trial(number).status, "stopped")
        if outcome.end in UNUSABLE:
            fate = "failed"
            self._hear(f"trial {number}: {outcome.end}: {outcome.message}")
        else:
            self._hear(
                f"trial {number}: {segment.end}/{self._policy.full} {self._told(number, segment, value)}, {fate}"
            )
        return fate

    def _told(self, number: int, segment: Segment, value: float) -> str:
        """What was measured where a segment ended, in a line."""
        also = self.study.notes(number).get(MEASURED, {}).get(str(segment.end), {})
        broken = [f"breaks {text}" for text in self.study.broken(number, segment.end)]
        return ", ".join([f"{self._metric} {value:.4f}", *(f"{name} {v:.4g}" for name, v in also.items()), *broken])

    def _miss(self, measured: Mapping[str, float]) -> None:
        there = ", ".join(sorted(measured))
        missing = ", ".join(name for name in dict.fromkeys((self._metric, *self._also)) if name not in measured)
        self.problem = UserError(f"--metric {missing}: trainings of this recipe do not give it; they give {there}")

    def _count_failures(self, outcome: Outcome) -> None:
        self._failures = self._failures + 1 if outcome.end == "failed" else 0
        if self._failures == FAILURES:
            self.problem = RunError(f"{FAILURES} trials failed one after another, the last one: {outcome.message}")
