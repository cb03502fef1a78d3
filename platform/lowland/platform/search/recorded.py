"""Earlier trainings as they were recorded: in studies of lowland, and in MLflow."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowland.platform.recipe.dump import flatten
from lowland.platform.recipe.mistakes import nearest
from lowland.platform.runs import as_text
from lowland.platform.search.results import StudyResult, TrialResult, read_study
from lowland.platform.search.setting import SETTING, TICKS, Setting, study_folder, study_names
from lowland.platform.search.space import BoundSpace
from lowland.platform.tracking.store import connect, first_line, resolve_uri
from lowland.platform.urls import redact
from lowland.trainers.errors import RecipeError, UserError
from lowland.trainers.recipe import Amount

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MLFLOW = "mlflow:"
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_CHANGED = "changed."
PROGRESS = {"epochs": "train/epoch", "tokens": "train/tokens"}
"""Metrics that tell how far a training has come in the unit of its length."""


@dataclass(frozen=True)
class Recorded:
    """A training of before."""

    group: str
    """The study or experiment."""
    name: str
    """The trial or run in it."""
    fields: Mapping[str, str]
    """Its recipe by dotted path, as text."""
    curve: Mapping[int, float]
    """The metric by 51sts of the whole length."""
    problem: str = ""
    """Why no search can use it."""

    @property
    def source(self) -> str:
        """Says where it comes from."""
        return f"{self.group}, {self.name}"


def recorded(source: str, setting: Setting) -> list[Recorded]:
    """The trainings of a source.

    Args:
        source: the name of a study in the search's storage folder or the path of its folder; `mlflow:` and the name of
            an experiment, or the id of a run, of a study's run for its trials.
        setting: the search that asks; it says where, and what is measured.

    Raises:
        UserError: there is no such source, or it measured something else.
    """
    if source.startswith(MLFLOW):
        return list(_in_mlflow(source.removeprefix(MLFLOW), setting))
    storage, name = _place(source, setting)
    if storage == setting.recipe.storage and name == setting.name:
        raise UserError(f"--warm-start {source}: the search itself; --resume goes on with it")
    found = read_study(storage, name)
    if (found.metric, found.direction) != (setting.metric, setting.direction):
        raise UserError(
            f"--warm-start {source}: its metric is {found.metric}, to {found.direction}; this search's is "
            f"{setting.metric}, to {setting.direction}"
        )
    return list(_of_study(found, source.rstrip("/")))


def _place(source: str, setting: Setting) -> tuple[str, str]:
    """Storage folder and name of a study."""
    storage, slash, name = source.rstrip("/").rpartition("/")
    storage = storage if slash else setting.recipe.storage
    if not (study_folder(storage, name) / SETTING).is_file():
        names = ", ".join(study_names(storage)) or "none"
        raise UserError(
            f"--warm-start {source}: no study {name!r} in {storage}; studies there: {names}. MLflow's runs are named "
            f"{MLFLOW}EXPERIMENT or {MLFLOW}RUN_ID"
        )
    return storage, name


def _of_study(found: StudyResult, source: str) -> Iterator[Recorded]:
    assert found.setting is not None
    try:
        space = found.setting.bound()
    except RecipeError as error:
        raise UserError(f"study {found.name!r} cannot be read any more: {first_line(error)}") from error
    for trial in found.trials:
        fields, problem = dict[str, str](), _problem(trial)
        try:
            fields = fields_of(space, trial)
        except RecipeError as error:
            problem = problem or first_line(error)
        yield Recorded(f"study {source}", f"trial {trial.number}", fields, trial.curve, problem)


def fields_of(space: BoundSpace, trial: TrialResult) -> dict[str, str]:
    """A trial's recipe, by dotted path.

    Raises:
        RecipeError: its parameters make none.
    """
    return as_text(flatten(space.apply(trial.parameters)))


def _problem(trial: TrialResult) -> str:
    if trial.source:
        return f"it comes from {trial.source}: name that too"
    if trial.reason.startswith(("out of memory", "refused")):
        return f"{trial.reason.split(':')[0]}, which says nothing of other machines or spaces"
    return ""


def _in_mlflow(name: str, setting: Setting) -> Iterator[Recorded]:
    from mlflow.exceptions import MlflowException

    uri = resolve_uri(setting.recipe.tracking, setting.recipe.storage)
    client = connect(uri)
    try:
        if _RUN_ID.fullmatch(name):
            runs, group = _runs_of(client, name), f"MLflow run {name}"
        else:
            runs, group = _experiment(client, name, uri), f"MLflow experiment {name}"
        for run in runs:
            if "lowland.study" not in run.data.tags:
                yield _of_run(client, run, group, setting.metric)
    except MlflowException as error:
        raise UserError(f"--warm-start {MLFLOW}{name}: {first_line(error)} ({redact(uri)})") from error


def _runs_of(client: "MlflowClient", run_id: str) -> Sequence["Run"]:
    """A run; the trials' runs if it is that of a study."""
    run = client.get_run(run_id)
    if "lowland.study" not in run.data.tags:
        return [run]
    return _all_runs(client, run.info.experiment_id, f"tags.`mlflow.parentRunId` = '{run_id}'")


def _experiment(client: "MlflowClient", name: str, uri: str) -> Sequence["Run"]:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        names = [one.name for one in client.search_experiments()]
        close = ", ".join(nearest(name, names) or names)
        raise UserError(f"--warm-start {MLFLOW}{name}: no such experiment in {redact(uri)}; there: {close}")
    return _all_runs(client, experiment.experiment_id, "")


def _all_runs(client: "MlflowClient", experiment_id: str, where: str) -> Sequence["Run"]:
    runs = list["Run"]()
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], where, order_by=["attributes.start_time ASC"], page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _of_run(client: "MlflowClient", run: "Run", group: str, metric: str) -> Recorded:
    run_id = run.info.run_id
    name = f"run {run.info.run_name} ({run_id[:8]})" if run.info.run_name else f"run {run_id}"  # names repeat
    changed = {key.removeprefix(_CHANGED): text for key, text in run.data.tags.items() if key.startswith(_CHANGED)}
    fields = {**run.data.params, **changed}
    if metric not in run.data.metrics:
        return Recorded(group, name, fields, {}, f"{metric} was not measured")
    share = _share_of_a_step(client, run_id, fields)
    if share is None:
        return Recorded(group, name, fields, {}, "its length is not known")
    history = sorted((point.step, point.value) for point in client.get_metric_history(run_id, metric))
    curve = {min(max(1, round(step * share * TICKS)), TICKS): value for step, value in history if step > 0}
    return Recorded(group, name, fields, curve)


def _share_of_a_step(client: "MlflowClient", run_id: str, fields: Mapping[str, str]) -> float | None:
    """The part of a whole training that a step is."""
    try:
        length = Amount.parse(fields["length"])
    except (KeyError, ValueError):
        return None
    if length.unit == "steps":
        return 1 / math.ceil(length.value) if length.value else None
    if length.unit not in PROGRESS:
        return None
    last = max(client.get_metric_history(run_id, PROGRESS[length.unit]), key=lambda point: point.step, default=None)
    return last.value / last.step / length.value if last is not None and last.step and length.value else None
