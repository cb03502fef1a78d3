"""`compare`: a comparison on a cluster, from the first check to the report."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from lowland.platform.comparison.plan import Comparison, Kind, Plan
from lowland.platform.comparison.report import PAGE, metrics_of, print_result, write_report
from lowland.platform.comparison.results import ComparisonResult, read_result
from lowland.platform.comparison.stages import failed, tuning, unfinished
from lowland.platform.runs import Driver
from lowland.platform.search.setting import Setting, refuse_if_led
from lowland.platform.search.tune import ready
from lowland.platform.tracking.store import first_line
from lowland.trainers.errors import RunError

if TYPE_CHECKING:
    from lowland.platform.search.workers import Workers
    from lowland.platform.tracking.run import TrackedRun

Status = Literal["finished", "interrupted", "failed"]
KINDS: tuple[Kind, ...] = ("tuning", "seeds")
TAG = "lowland.comparison_id"
REPORT = "report"
"""Folder of the report, in the comparison's."""


@dataclass(frozen=True)
class ComparisonOutcome:
    """How a comparison ended that did not fail."""

    status: Literal["finished", "interrupted"]
    result: ComparisonResult

    @property
    def exit_code(self) -> int:
        """0 if it came to its end, 130 if it was interrupted."""
        return 0 if self.status == "finished" else 130


def compare(comparison: Comparison, *, address: str | None, console: Console) -> ComparisonOutcome:
    """Tunes every arm, trains each winner with every seed, and reports; beginning or going on from storage.

    Args:
        comparison: of `lowland.platform.comparison.start.begin`.
        address: the Ray cluster to join; None takes RAY_ADDRESS, else starts one on this machine.
        console: where progress and the result are shown.

    Raises:
        UserError: something can be corrected.
        RunError: a search failed, or a seed could not be trained.
    """
    comparison.refuse_if_led()
    plan = comparison.plan
    if comparison.status == "finished" and not any(unfinished(plan, arm, kind) for kind in KINDS for arm in plan.arms):
        print_result(result := read_result(plan), console)
        return ComparisonOutcome("finished", result)
    recipes = [tuning(plan, arm).recipe for arm in plan.ordered]
    with ready(recipes, address, comparison.parallel, console) as (uri, experiment_id), ExitStack() as stack:
        return _Leader(comparison, uri, experiment_id, console, stack).run()


class _Leader:
    """One command that leads a comparison on a connected cluster."""

    def __init__(
        self, comparison: Comparison, uri: str, experiment_id: str, console: Console, stack: ExitStack
    ) -> None:
        self._plan, self._uri, self._experiment_id, self._console = comparison.plan, uri, experiment_id, console
        self._stack = stack
        self._kind: Any = None
        self._workers: Workers | None = None
        comparison = comparison.with_(driver=Driver.current(), status="running")
        comparison.write()
        self._parent = self._open_parent(comparison)
        self._comparison = comparison.with_(parent_run_id=self._parent.run_id)
        self._comparison.write()

    def run(self) -> ComparisonOutcome:
        """Runs what is left, and closes the comparison as what it became."""
        status: Status = "failed"
        try:
            came_to = self._stages()
            result = read_result(self._plan)
            if came_to == "finished":
                self._report(result)
                _refuse_missing(result)
            status = came_to
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self._close(status)
        return ComparisonOutcome(came_to, result)

    def _open_parent(self, comparison: Comparison) -> "TrackedRun":
        """The comparison's MLflow run; a driver may have died between making it and writing its id down."""
        from lowland.platform.tracking.run import TrackedRun, find_runs

        if comparison.parent_run_id is not None:
            return TrackedRun.resume(self._uri, comparison.parent_run_id)
        made = find_runs(self._uri, self._experiment_id, TAG, comparison.comparison_id)
        if made:
            return TrackedRun.resume(self._uri, made[0].info.run_id)
        name, metric = self._plan.name, self._plan.metric
        tags = {"lowland.comparison": name, TAG: comparison.comparison_id, "lowland.metric": metric}
        parent = TrackedRun.start(self._uri, self._experiment_id, name, command="lowland compare", tags=tags)
        parent.log_environment()
        return parent

    def _stages(self) -> Literal["finished", "interrupted"]:
        """All searches that are left, one after the other; each fills the cluster."""
        from lowland.platform.ray_run import interrupts

        for line in notes(self._plan):
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        with interrupts() as interrupt:  # between searches; while one runs, it hears
            for kind in KINDS:
                for arm in self._plan.ordered:
                    setting = None if interrupt.asked else unfinished(self._plan, arm, kind)
                    if interrupt.asked or (setting is not None and self._search(setting) == "interrupted"):
                        return "interrupted"
        return "finished"

    def _search(self, setting: Setting) -> Literal["finished", "interrupted"]:
        refuse_if_led(setting)
        self._console.print(f"\n{setting.name}", style="bold", highlight=False)
        led = setting.with_(within_run_id=self._parent.run_id, parallel=self._comparison.parallel)
        workers = self._workers_for(led)
        from lowland.platform.search.driver import SearchDriver  # takes seconds, in which workers come up

        return SearchDriver(led, self._uri, self._experiment_id, self._console, workers).run().status

    def _workers_for(self, setting: Setting) -> "Workers":
        """The workers of the search before, unless this one's are of another kind."""
        from lowland.platform.search.trial_runs import resources_of
        from lowland.platform.search.workers import Workers

        recipe = setting.recipe
        kind = resources_of(recipe), recipe.scaling.max_failures
        if self._workers is None or kind != self._kind:
            self._stack.close()
            files = str(self._plan.folder / "ray")
            self._workers = self._stack.enter_context(Workers(recipe, files, setting.parallel, setting.trials))
            self._kind = kind
        return self._workers

    def _report(self, result: ComparisonResult) -> None:
        print_result(result, self._console)
        folder = self._plan.folder / REPORT
        write_report(result, folder)
        self._console.print(f"\nReport: {folder / PAGE}", soft_wrap=True, highlight=False, markup=False)
        try:
            self._parent.log_values(metrics_of(result), 0)
            self._parent.log_folder(folder)
        except Exception as error:  # all of it can be made again from the studies
            self._console.print(f"the report is not in MLflow: {first_line(error)}", style="yellow")

    def _close(self, status: Status) -> None:
        self._comparison.with_(status=status).write()
        try:
            self._parent.finish(status)
        except Exception as error:
            self._console.print(f"MLflow could not be told that it ended: {first_line(error)}", style="yellow")
        if status != "finished":
            self._console.print(
                f"{self._plan.name} {status}; go on with the same command and --resume",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )


def notes(plan: Plan) -> list[str]:
    """What the user is to know before the first training."""
    count = len(plan.arms)
    title = f"comparison {plan.name!r} in {plan.folder}: {count} arms, then {len(plan.seeds)} seeds of each winner"
    return [title, *plan.cautions]


def _refuse_missing(result: ComparisonResult) -> None:
    untrained = [arm for arm in result.arms if arm.winner is not None and arm.missing]
    untuned = [arm for arm in result.arms if arm.lost]
    lost = [f"seed {seed} of {arm.name}" for arm in untrained for seed in arm.missing]
    lost += [f"the tuning of {arm.name}" for arm in untuned]
    if lost:
        studies = [*(arm.trained for arm in untrained), *(arm.tuning for arm in untuned)]
        reasons = [trial.reason for study in studies if study is not None for trial in failed(study)]
        last = [reason for reason in reasons if reason][-1:]
        raise RunError("; ".join([f"trainings failed: {', '.join(lost)}", *last, "--resume trains them again"]))
