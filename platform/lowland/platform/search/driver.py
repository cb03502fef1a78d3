"""One command that leads a search on a connected cluster."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from ray import tune
from rich.console import Console

from lowland.platform.ray_run import Fitting, Interrupt, interrupts
from lowland.platform.runs import Driver
from lowland.platform.search.compatibility import notes as notes_on_choices
from lowland.platform.search.first_rung import notes as notes_on_rungs
from lowland.platform.search.ledger import Price, metrics_of
from lowland.platform.search.ledger_log import LedgerLog
from lowland.platform.search.report import write_report
from lowland.platform.search.results import StudyResult, read_study
from lowland.platform.search.search import Search
from lowland.platform.search.searcher import StudySearcher, trainable
from lowland.platform.search.setting import STOP, Setting, read_setting, refuse_if_led
from lowland.platform.search.start import open_study, policy_of
from lowland.platform.search.storage import location
from lowland.platform.search.table import SearchDisplay, State, state_line
from lowland.platform.search.trial_runs import TrialRuns
from lowland.platform.search.workers import Workers
from lowland.platform.tracking.run import TrackedRun, find_runs
from lowland.platform.tracking.store import first_line
from lowland.platform.urls import redact
from lowland.trainers.errors import RunError

POLL_SECONDS = 0.5
SHOW_SECONDS = 2.0
"""Between two looks at all trials."""
WAITERS = 3
"""How often the process that waits for a segment may die; the segment itself goes on."""
TIED = ("cosine", "linear")
"""Schedules whose rate at a step depends on the whole length."""


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended that did not fail."""

    status: Literal["finished", "interrupted"]
    folder: str
    parent_run_id: str
    tracking_uri: str

    @property
    def exit_code(self) -> int:
        """0 if the search came to its end, 130 if it was interrupted."""
        return 0 if self.status == "finished" else 130


class SearchDriver:
    """Leads a search, with workers that the command has."""

    def __init__(self, setting: Setting, uri: str, experiment_id: str, console: Console, workers: Workers) -> None:
        self._uri, self._experiment_id, self._console, self._workers = uri, experiment_id, console, workers
        self._policy = policy_of(setting)
        refuse_if_led(read_setting(setting.recipe.storage, setting.name) or setting)  # while a cluster was joined
        self._study = open_study(setting)
        led = {"driver": Driver.current(), "status": "running", "tracking_uri": redact(uri)}
        setting = setting.with_(study_id=setting.study_id or uuid4().hex, **led)
        (setting.folder / STOP).unlink(missing_ok=True)
        setting.write()
        self._parent = self._open_parent(setting)
        self._ledger_log = LedgerLog(self._parent)
        self._setting = setting.with_(parent_run_id=self._parent.run_id)
        self._setting.write()

    def run(self) -> SearchOutcome:
        """Searches, and closes the search as what it became."""
        status: Literal["finished", "interrupted", "failed"] = "failed"
        with ThreadPoolExecutor(1) as background:
            described = background.submit(self._describe)
            try:
                status = self._search()
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                self._close(status, described)
        return SearchOutcome(status, str(self._setting.folder), self._parent.run_id, self._uri)

    def _open_parent(self, setting: Setting) -> TrackedRun:
        """The study's MLflow run; a driver may have died between making it and writing its id down."""
        if setting.parent_run_id is not None:
            return TrackedRun.resume(self._uri, setting.parent_run_id)
        made = find_runs(self._uri, self._experiment_id, "lowland.study_id", setting.study_id)
        metrics = ", ".join([setting.metric, *(other.metric for other in setting.others)])
        tags = {"lowland.study": setting.name, "lowland.study_id": setting.study_id, "lowland.metric": metrics}
        tags |= {"lowland.constraints": ", ".join(map(str, setting.bounds))} if setting.bounds else {}
        if setting.within_run_id is not None:
            tags["mlflow.parentRunId"] = setting.within_run_id
        tags |= {"lowland.price": setting.price} if setting.price is not None else {}
        if made:
            return TrackedRun.resume(self._uri, made[0].info.run_id)
        return TrackedRun.start(self._uri, self._experiment_id, setting.name, command="lowland tune", tags=tags)

    def _describe(self) -> None:
        """Records what is searched on what; beside the search, since it takes a second or two."""
        setting = self._setting
        self._parent.log_recipe(setting.recipe, 1)
        self._parent.log_environment()
        files = {"space.json": setting.space.model_dump_json(indent=2, exclude_unset=True)}
        if setting.warm_start:
            files["warm-start.txt"] = "".join(f"{line}\n" for line in setting.warm_start)
        self._parent.log_files(files)

    def _make_search(self, hear: Callable[[str], None]) -> Search:
        setting, space = self._setting, self._setting.bound()
        runs = TrialRuns(space, self._uri, self._experiment_id, self._parent.run_id, self._policy.full)
        return Search(
            self._study,
            self._policy,
            runs,
            space.why_not,
            metric=setting.metric,
            most=setting.trials,
            budget=setting.limit,
            also=[*(other.metric for other in setting.others), *(bound.metric for bound in setting.bounds)],
            hear=hear,
        )

    def _search(self) -> Literal["finished", "interrupted"]:
        for line in notes(self._setting, self._workers.most):
            self._console.print(line, soft_wrap=True)
        with SearchDisplay(self._console, self._setting.metric) as display, interrupts() as interrupt:
            search = self._make_search(display.event)
            watch = _Watch(search, display, self._sign, self._setting.prices)
            fitting = Fitting(_tuner(search, self._workers))
            try:
                self._wait(fitting, search, watch, interrupt)
            except BaseException:
                search.stop()
                raise
            interrupted = search.stopping
            watch.show()
        self._ledger_log.close()
        self._log(search, watch)
        if search.problem is not None:
            raise search.problem
        if fitting.error is not None:
            raise RunError(f"Ray Tune failed: {first_line(fitting.error)}") from fitting.error
        return "interrupted" if interrupted else "finished"

    def _wait(self, fitting: Fitting, search: Search, watch: "_Watch", interrupt: Interrupt) -> None:
        stop, log = self._setting.folder / STOP, self._ledger_log
        while not fitting.done.wait(POLL_SECONDS):
            for event in self._workers.tend():
                watch.display.event(event)
            if (interrupt.asked or stop.exists()) and not search.stopping:
                search.stop()
                watch.display.event("stopping: trials save and end after their step (Ctrl-C again stops at once)")
            if search.stopping:
                self._workers.stop()
            watch.tick()
            if log.due:
                state = watch.state()
                log.tell(self._spent(state), len(state.trials))

    @property
    def _sign(self) -> float:
        return 1.0 if self._setting.direction == "minimize" else -1.0

    def _log(self, search: Search, watch: "_Watch") -> None:
        """The ledger and the best trial, on the parent run."""
        state = watch.state()
        values = self._spent(state)
        found = read_study(self._setting.recipe.storage, self._setting.name)
        tags = {}
        if (best := found.best) is not None and best.value is not None:
            values[f"best/{self._setting.metric}"] = best.value
            tags["lowland.best_trial"] = str(best.number)
        if found.front:
            tags = {"lowland.front": ", ".join(str(trial.number) for trial in found.front)}
        self._parent.log_values(values, len(state.trials), tags)
        self._log_report(found)
        self._console.print(state_line(state, self._setting.metric), soft_wrap=True, highlight=False)

    def _spent(self, state: State) -> dict[str, float]:
        """The ledger and how many trials became what."""
        began = sum(state.counts.values())
        counts = {f"search/trials_{status}": float(count) for status, count in state.counts.items()}
        return metrics_of(state.ledger, self._setting.prices, began) | counts

    def _log_report(self, found: StudyResult) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                write_report(found, Path(folder))
                self._parent.log_folder(Path(folder))
        except Exception as error:  # all of it can be made again from the study
            self._console.print(f"the study's report is not in MLflow: {first_line(error)}", style="yellow")

    def _close(self, status: Literal["finished", "interrupted", "failed"], described: Future[None]) -> None:
        name, storage = self._setting.name, self._setting.recipe.storage
        if (error := described.exception()) is not None:
            self._console.print(f"the study's description in MLflow is incomplete: {first_line(error)}", style="yellow")
        try:
            self._parent.finish(status)
        except Exception as error:
            self._console.print(f"MLflow could not be told that the search ended: {first_line(error)}", style="yellow")
        self._setting.with_(status=status).write()  # last: a search that was killed before it may be resumed
        if status != "finished":
            way = f"go on with: lowland study resume {name} --storage {storage}"
        else:
            way = f"see: lowland study show {name} --storage {storage}"
        self._console.print(way, soft_wrap=True, highlight=False)


class _Watch:
    """Shows a search from time to time."""

    def __init__(self, search: Search, display: SearchDisplay, sign: float, price: Price | None) -> None:
        self.display = display
        self._search, self._sign, self._price = search, sign, price
        self._began = self._shown = time.monotonic()
        self._share = search.share() or 0.0

    def tick(self) -> None:
        """Shows it if it is time to."""
        if time.monotonic() - self._shown >= SHOW_SECONDS:
            self.show()

    def show(self) -> None:
        """Shows it."""
        self._shown = time.monotonic()
        self.display.update(self.state())

    def state(self) -> State:
        """How the search stands."""
        search = self._search
        seconds = time.monotonic() - self._began
        ledger, share = search.ledger(), search.share()
        return State(search.study.trials(), self._sign, ledger, share, self._share, seconds, self._price)


def notes(setting: Setting, parallel: int) -> list[str]:
    """What the user is to know before the first trial."""
    where = f", trials in {location(setting)}" if setting.database else ""
    lines = [f"study {setting.name!r} in {setting.folder}{where}: {parallel} trials at a time"]
    lines += [f"warm start: {line}" for line in setting.warm_start]
    lines += setting.bound().moved()
    lines += notes_on_choices(setting)
    lines += notes_on_rungs(setting)
    schedule = setting.recipe.schedule.name
    if schedule in TIED and setting.policy != "none":
        lines.append(
            f"note: schedule.name is {schedule}, whose rate falls towards the end of the whole length: trials that "
            "are compared before it still have high rates, which favours small ones; schedule.name: wsd or constant "
            "compares more fairly, --policy none trains every trial whole"
        )
    return lines


def _tuner(search: Search, workers: Workers) -> Any:
    return tune.Tuner(
        trainable(workers.dispatcher),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(search), num_samples=-1, max_concurrent_trials=workers.most, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=workers.files,
            failure_config=tune.FailureConfig(max_failures=WAITERS),
            verbose=0,
        ),
    )
