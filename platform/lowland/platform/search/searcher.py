"""The search as Ray Tune sees it: a search algorithm whose suggestions are segments."""

from collections.abc import Callable
from threading import Lock
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from lowland.platform.search.jobs import Job, Outcome
from lowland.platform.search.search import Search

TRIAL, OUTCOME = "trial", "outcome"
_NOWHERE = {"CPU": 0.0, "node:__internal_head__": 0.001}
"""What a Tune trial holds: it only waits, where the head is."""


class StudySearcher(Searcher):  # type: ignore[misc]
    """Hands out segments as Tune's trials, each of which ends by itself.

    Args:
        search: decides; its state is in storage, so that Tune has none to keep.
    """

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search, self._lock = search, Lock()
        self._trials: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next segment, None to be asked again, or the end."""
        with self._lock:
            answer = self._search.next()
            if isinstance(answer, str):
                return None if answer == "wait" else Searcher.FINISHED
            segment, job = answer
            self._trials[trial_id] = segment.trial
            return {TRIAL: segment.trial, "start": segment.start, "end": segment.end, "job": job}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Takes what became of a segment."""
        with self._lock:
            number = self._trials.pop(trial_id)
            lost = Outcome("failed", "the process that waited for its workers died")
            self._search.ended(number, lost if error or not result else result.get(OUTCOME, lost))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all is in the study."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: all is in the study."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its set-up to restore it; a search goes on from its study


def trainable(dispatcher: Any) -> Callable[[dict[str, Any]], None]:
    """What Tune runs for a segment: it waits for the dispatcher."""

    def segment(config: dict[str, Any]) -> None:
        import ray

        job: Job = config["job"]
        # "done" is Tune's word for a trial that ends here: without it, Tune asks once more.
        tune.report({OUTCOME: ray.get(dispatcher.run.remote(job)), "done": True})

    placed: Callable[[dict[str, Any]], None] = tune.with_resources(segment, tune.PlacementGroupFactory([_NOWHERE]))
    return placed
