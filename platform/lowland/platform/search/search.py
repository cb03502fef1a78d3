"""A search step by step: which segment is next, and what an ended one leads to.

It knows neither Ray nor MLflow: `begin` makes a segment's job and `tell` hears what became of a trial.  All state is
the study's, so that a search that died goes on from its storage.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from lowland.platform.search.jobs import UNUSABLE, Job, Outcome
from lowland.platform.search.ledger import SEGMENTS, Budget, Ledger, account, total
from lowland.platform.search.policies import Policy
from lowland.platform.search.study import Study
from lowland.platform.search.trials import Segment, TrialView
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

    def begin(self, segment: Segment, parameters: Mapping[str, Any]) -> Job:
        """The job of a segment."""

    def ended(self, number: int, outcome: Outcome, fate: Any) -> None:
        """What became of a trial."""

    def given_up(self, number: int) -> None:
        """A trial that was paused does not go on."""


class Search:
    """Decides for one driver.

    Args:
        study: its state.
        policy: how far trials are trained.
        runs: trials as runs.
        why_not: what is wrong with parameters, before anything is trained.
        metric: of a training's latest evaluation or record.
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
        hear: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.study, self._policy, self._runs, self._why_not = study, policy, runs, why_not
        self._metric, self._most, self._budget, self._hear = metric, most, budget, hear
        self.problem: LowlandError | None = None
        """Why the search cannot go on."""
        self._stopping = False
        self._failures = 0
        self.running: dict[int, tuple[Segment, Job]] = {}
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
            parameters = self.study.trial(segment.trial).parameters
            wrong = self._why_not(parameters) if segment.start == 0 else []
            if wrong:
                self._settle(segment, Outcome("refused", "; ".join(wrong)))
                continue
            job = self._runs.begin(segment, parameters)
            self.running[segment.trial] = segment, job
            return segment, job
        self.problem = UserError(f"{REFUSALS} proposals in a row break the constraints of the space; narrow its ranges")
        return "over"

    def ended(self, number: int, outcome: Outcome) -> None:
        """Takes how a trial's segment has ended."""
        segment, job = self.running.pop(number)
        accounts = self.study.notes(number).get(SEGMENTS, [])
        self.study.note(number, SEGMENTS, [*accounts, account(segment, job, outcome, self._policy.full)])
        if outcome.end == "interrupted":
            self._runs.ended(number, outcome, "interrupted")
            return
        if outcome.end == "reached" and self._metric not in outcome.result["metrics"]:
            self._miss(outcome)
            self._runs.ended(number, outcome, "interrupted")
            return
        fate = self._settle(segment, outcome)
        self._runs.ended(number, outcome, fate)
        self._count_failures(outcome)

    def ledger(self) -> Ledger:
        """What was spent."""
        return total([self.study.notes(t.number).get(SEGMENTS, []) for t in self.study.trials()])

    def share(self) -> float | None:
        """How much of the budget or of the trials is done; None if neither is limited."""
        shares = []
        if self._budget is not None:
            shares.append(self.ledger().spent(self._budget.unit) / self._budget.amount)
        if self._most is not None:
            shares.append(sum(bool(t.curve) for t in self._begun()) / self._most)
        return min(max(shares), 1.0) if shares else None

    def _choose(self) -> Segment | Answer:
        if self.stopping:
            return "wait" if self.running else "over"
        if self._budget is not None and self.ledger().spent(self._budget.unit) >= self._budget.amount:
            return "wait" if self.running else self._over()
        if self._due:
            return self._due.pop(0)
        full = self._most is not None and len(self._begun()) >= self._most
        if not full or self._policy.resume(self.study.trials()) is not None:
            return self.study.next(self._policy)
        if self.running:
            return "wait"
        return self._last() or self._over()

    def _last(self) -> Segment | None:
        """If no trial was trained whole: the best of those that came furthest goes on."""
        trials = self.study.trials()
        paused = [t for t in trials if t.status == "paused"]
        if not paused or any(t.status == "finished" for t in trials):
            return None
        best = min(paused, key=lambda t: (-t.target, t.curve[t.target], t.number))
        return self.study.resume(best.number, self._policy)

    def _over(self) -> Answer:
        for trial in self.study.trials():
            if trial.status == "paused":
                self._runs.given_up(trial.number)
        self.study.close()
        return "over"

    def _begun(self) -> list[TrialView]:
        """All trials that began to be trained."""
        notes = self.study.notes
        return [t for t in self.study.trials() if t.target > 0 and notes(t.number).get(END) != "refused"]

    def _left(self) -> list[Segment]:
        """The segments that a driver left when it ended; a trial that it had only half proposed is given up."""
        running = [trial for trial in self.study.trials() if trial.status == "running"]
        for trial in running:
            if trial.target == 0:
                self.study.fail(trial.number, "the search ended while it was proposed")
        return [Segment(t.number, t.reached, t.target) for t in running if t.target > 0]

    def _settle(self, segment: Segment, outcome: Outcome) -> Any:
        """Writes a result or a failure to the study; what becomes of the trial."""
        number = segment.trial
        self.study.note(number, END, outcome.end)
        if outcome.message:
            self.study.note(number, "message", outcome.message)
        if outcome.end == "failed":
            self.study.fail(number, outcome.message)
            self._hear(f"trial {number} failed: {outcome.message}")
            return "failed"
        value = outcome.result["metrics"][self._metric] if outcome.end == "reached" else math.nan
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
            self._hear(f"trial {number}: {segment.end}/{self._policy.full} {self._metric} {value:.4f}, {fate}")
        return fate

    def _miss(self, outcome: Outcome) -> None:
        there = ", ".join(sorted(outcome.result["metrics"]))
        self.problem = UserError(f"--metric {self._metric}: trainings of this recipe do not give it; they give {there}")

    def _count_failures(self, outcome: Outcome) -> None:
        self._failures = self._failures + 1 if outcome.end == "failed" else 0
        if self._failures == FAILURES:
            self.problem = RunError(f"{FAILURES} trials failed one after another, the last one: {outcome.message}")
