"""A trial as a run: its recipe, its run folder, and one MLflow run however many segments it takes."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from lowland.platform.recipe import Recipe, load_recipe, read_recipe
from lowland.platform.recipe.dump import dump, flatten
from lowland.platform.runs import RECIPE, RunFolder, RunRecord
from lowland.platform.search.forks import fork_checkpoint, newest_step
from lowland.platform.search.jobs import Job, Outcome, Resources
from lowland.platform.search.space import BoundSpace
from lowland.platform.search.trials import Origin, Segment
from lowland.platform.tracking.run import TrackedRun, find_runs
from lowland.platform.urls import redact

Fate = Literal["goes on", "paused", "finished", "stopped", "failed", "interrupted"]
"""What becomes of a trial when a segment has ended."""
_Held = tuple[RunFolder, RunRecord, TrackedRun]


class TrialRuns:
    """The runs of a study's trials.

    Args:
        space: makes recipes of parameters; its base is named after the study.
        uri: the MLflow store.
        experiment_id: of it.
        parent_run_id: the study's run.
        full: the resource of a whole training.
    """

    def __init__(self, space: BoundSpace, uri: str, experiment_id: str, parent_run_id: str, full: int) -> None:
        self._space, self._uri, self._experiment_id = space, uri, experiment_id
        self._parent, self._full = parent_run_id, full
        self._storage = f"{space.base.storage.rstrip('/')}/{space.base.name}"
        self._held: dict[int, _Held] = {}
        self._background = ThreadPoolExecutor(1, thread_name_prefix="lowland-trials")
        self._described: dict[int, Future[None]] = {}
        """By trial, the description of its run, which is written while its workers begin."""
        self._made: dict[str, str] | None = None
        """By trial, the MLflow runs there were when this driver began."""

    def recipe(self, number: int, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial, with its own name and folder.

        Raises:
            RecipeError: the parameters make none.
        """
        data = self._space.apply(parameters).model_dump(mode="json", exclude_unset=True)
        checkpoints = {**data.get("checkpoints", {}), "export": False}
        place = {"name": _name(number), "storage": self._storage}
        tracking = {**data.get("tracking", {}), "uri": self._uri}
        return read_recipe({**data, **place, "checkpoints": checkpoints, "tracking": tracking})

    def begin(self, segment: Segment, parameters: Mapping[str, Any], origin: Origin | None) -> Job:
        """The job that trains a segment; the trial's run is made or continued.

        Raises:
            RecipeError: the parameters make no recipe.
            RunError: it begins from another trial's checkpoint, which is not there.
        """
        decided = time.time()
        recipe = self.recipe(segment.trial, parameters)
        held = self._held.get(segment.trial)
        folder, record, tracked = held if held is not None else self._open(segment.trial, recipe, origin)
        if origin is not None and newest_step(folder) is None:
            fork_checkpoint(RunFolder.open(self._storage, _name(origin.parent)), folder)
        record = record.next_attempt(flatten(recipe))
        folder.write(record)
        folder.write_bytes(dump(recipe).encode(), RECIPE)
        self._held[segment.trial] = folder, record, tracked
        task = {
            "recipe": recipe.model_dump(mode="json"),
            "run_id": tracked.run_id,
            "tracking_uri": tracked.uri,
            "created": tracked.created,
            "attempt": record.attempts,
            "until": (segment.end, self._full),
            "times": {"command": decided},
        }
        return Job(resources_of(recipe), task)

    def ended(self, number: int, outcome: Outcome, fate: Fate) -> None:
        """Marks the run as what its trial became."""
        self._see_described(number)
        folder, record, tracked = self._held[number]
        if fate == "goes on":
            return
        status: Literal["finished", "failed", "interrupted"]
        status = fate if fate == "finished" or fate == "failed" else "interrupted"
        folder.write(record.with_(status=status))
        if fate == "paused":
            tracked.pause()
            return
        tracked.log_values({}, 0, {"lowland.trial.fate": fate, "lowland.trial.end": outcome.end})
        tracked.finish("finished" if fate == "stopped" and outcome.end == "reached" else status, folder)
        del self._held[number]

    def settle(self, number: int, outcome: Outcome, fate: Fate) -> None:
        """Closes the run of a trial if a driver that died had decided on it and not closed it."""
        record = RunFolder.open(self._storage, _name(number)).read()
        held = self._reopen(number) if record is not None and record.status == "running" else None
        if held is not None:
            self._held[number] = held
            # A study's folder is a local one.  The driver may have died while it described the run.
            held[2].log_recipe(load_recipe(f"{held[0].uri}/{RECIPE}"), 1)
            self.ended(number, outcome, fate)

    def replaced(self, number: int) -> None:
        """Closes the run of a paused trial that is given up, since another one takes its place."""
        held = self._held.get(number) or self._reopen(number)
        if held is not None:
            self._held[number] = held
            self.ended(number, Outcome("reached"), "stopped")

    def rests(self, number: int) -> None:
        """Marks the run of a paused trial as one that does not go on in this search."""
        self._see_described(number)
        held = self._held.pop(number, None) or self._reopen(number)
        if held is not None:
            folder, _, tracked = held
            tracked.log_values({}, 0, {"lowland.trial.fate": "paused", "lowland.trial.end": "reached"})
            tracked.finish("finished", folder)

    def _reopen(self, number: int) -> _Held | None:
        folder = RunFolder.open(self._storage, _name(number))
        record = folder.read()
        if record is None or record.mlflow_run_id is None:
            return None
        return folder, record, TrackedRun.resume(self._uri, record.mlflow_run_id)

    def _open(self, number: int, recipe: Recipe, origin: Origin | None) -> _Held:
        held = self._reopen(number) or self._made_new(number, recipe, origin)
        # Of a run that is there too: the driver that made it may have died before this was done.
        self._described[number] = self._background.submit(held[2].log_recipe, recipe, 1)
        return held

    def _see_described(self, number: int) -> None:
        """Waits for the description; an error of it is this thread's."""
        if (description := self._described.pop(number, None)) is not None:
            description.result()

    def _made_new(self, number: int, recipe: Recipe, origin: Origin | None) -> _Held:
        folder = RunFolder.open(recipe.storage, recipe.name)
        folder.create()
        tracked = self._track(number, f"{self._space.base.name}/{recipe.name}", self._origin_tags(origin))
        record = RunRecord.new(recipe.name, flatten(recipe)).with_(
            tracking_uri=redact(self._uri), experiment=recipe.tracking.experiment, mlflow_run_id=tracked.run_id
        )
        folder.write(record)
        return folder, record, tracked

    def _origin_tags(self, origin: Origin | None) -> dict[str, str]:
        """By which the run of a forked trial tells where it comes from."""
        if origin is None:
            return {}
        folder = RunFolder.open(self._storage, _name(origin.parent))
        record = folder.read()
        return {
            "lowland.forked_from": str(record.mlflow_run_id if record is not None else None),
            "lowland.forked_from_trial": str(origin.parent),
            "lowland.forked_at_step": str(newest_step(folder)),
            "lowland.replaces_trial": str(origin.replaces),
        }

    def _track(self, number: int, name: str, more: Mapping[str, str]) -> TrackedRun:
        """The trial's MLflow run; a driver may have died between making it and writing its id down."""
        if self._made is None:
            children = find_runs(self._uri, self._experiment_id, "mlflow.parentRunId", self._parent)
            self._made = {run.data.tags.get("lowland.trial", ""): str(run.info.run_id) for run in children}
        if str(number) in self._made:
            return TrackedRun.resume(self._uri, self._made[str(number)])
        tags = {"mlflow.parentRunId": self._parent, "lowland.trial": str(number), **more}
        return TrackedRun.start(self._uri, self._experiment_id, name, command="lowland tune", tags=tags)


def _name(number: int) -> str:
    return f"trial-{number:04}"


def resources_of(recipe: Recipe) -> Resources:
    """What a training's workers hold."""
    scaling = recipe.scaling
    return Resources(
        scaling.workers,
        scaling.cpus_per_worker,
        scaling.gpus_per_worker,
        scaling.accelerator_type,
        scaling.placement,
    )
