"""One MLflow run, as the driver leads it."""

import getpass
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import lowland.platform
from lowland.platform.recipe import ImageClassificationRecipe, Recipe
from lowland.platform.recipe.dump import dump, flatten
from lowland.platform.runs import RunFolder
from lowland.platform.tracking.delivery import deliver_spools
from lowland.platform.tracking.environment import write_environment
from lowland.platform.tracking.models import log_exported_model
from lowland.platform.tracking.store import connect
from lowland.platform.urls import redact
from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run, RunData

Outcome = Literal["finished", "failed", "interrupted"]

# MLflow's own words for how a run ended.
STATUS: Mapping[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LONGEST = 6000
"""Characters of a parameter; MLflow cuts longer ones."""
MANY = 100
"""Parameters or tags that MLflow takes in one request."""
MOST_RUNS = 1000
"""Runs that it gives in one answer."""


class TrackedRun:
    """The MLflow run of a training: made once, continued by every attempt under the same id.

    It belongs to the driver, so that a worker that dies leaves no run open and closes none that goes on.  Metrics
    of the training come from the workers (`MetricWriter`), by `run_id`.
    """

    def __init__(self, client: "MlflowClient", uri: str, run: "Run") -> None:
        self._client = client
        self.uri = uri
        self.run_id = str(run.info.run_id)
        self.experiment_id = str(run.info.experiment_id)
        self.created = int(run.info.start_time) / 1000
        """When the run was first started, in seconds since 1970; system metrics count their steps from it."""

    @classmethod
    def start(
        cls,
        uri: str,
        experiment_id: str,
        name: str,
        *,
        command: str = "lowland train",
        tags: Mapping[str, str] | None = None,
    ) -> "TrackedRun":
        """Makes the run; `check_store` gives the experiment's id."""
        client = connect(uri)
        own = {"mlflow.user": _user(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
        return cls(client, uri, client.create_run(experiment_id, run_name=name, tags={**own, **(tags or {})}))

    @classmethod
    def resume(cls, uri: str, run_id: str) -> "TrackedRun":
        """Continues a run: the same id, running again.

        Raises:
            UserError: the store does not have the run, or it was deleted there.
        """
        from mlflow.exceptions import MlflowException

        client = connect(uri)
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            raise UserError(f"MLflow run {run_id} is not in {redact(uri)}; correct tracking.uri") from error
        if run.info.lifecycle_stage != "active":
            raise UserError(f"MLflow run {run_id} was deleted; restore it with `mlflow runs restore --run-id {run_id}`")
        client.update_run(run_id, status="RUNNING")
        return cls(client, uri, run)

    def log_recipe(self, recipe: Recipe, attempt: int) -> None:
        """Records every field as a parameter, the file as an artifact, and the tags to find the run by.

        MLflow's parameters never change, so a field that this attempt changed is recorded as the tag
        `changed.<field>` with its new value.
        """
        fields = {name: str(value)[:LONGEST] for name, value in flatten(recipe).items()}
        if recipe.tracking.uri is not None:
            fields["tracking.uri"] = redact(recipe.tracking.uri)
        held = self._client.get_run(self.run_id).data
        self._log(params={name: text for name, text in fields.items() if name not in held.params})
        own = {re.sub(r"[^\w.\- /:]", "_", key): text for key, text in recipe.tracking.tags.items()}
        self._log(tags={**_changes(held, fields), **search_tags(recipe, attempt), **own})
        self._client.log_text(self.run_id, dump(recipe), "recipe.yaml")

    def log_environment(self, sources: Sequence[Path] | None = None) -> None:
        """Records packages, machine, and git commit with the dirty diff, under `environment/`.

        Args:
            sources: folders whose repositories are recorded; by default the working directory and lowland's source.
        """
        own = Path(lowland.platform.__path__[0])
        with tempfile.TemporaryDirectory() as folder:
            states = write_environment(Path(folder), sources if sources is not None else (Path.cwd(), own))
            self._client.log_artifacts(self.run_id, folder, "environment")
        if states and states[0].commit:
            dirty = str(bool(states[0].changed)).lower()
            self._log(tags={"mlflow.source.git.commit": states[0].commit, "git.dirty": dirty})

    def log_dataset(self, path: str, digest: str, profile: Mapping[str, int | float | str]) -> None:
        """Records prepared data as the run's training data set; again for the same data changes nothing.

        Args:
            path: folder of the prepared data; its last part names the data set.
            digest: digest of the content, from its manifest.
            profile: sizes and settings to show, for example tokens and rows.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=path.rstrip("/").rpartition("/")[2],
            digest=digest[:36],  # what MLflow's tables hold; 144 bits of it name the data well enough
            source_type="local" if "://" not in path else path.partition("://")[0],
            source=json.dumps({"uri": path}),
            profile=json.dumps(dict(profile)),
        )
        context = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])

    def log_model(self, folder: Path, location: str, task: str, step: int, metrics: Mapping[str, float]) -> str:
        """Records the exported model as a logged model of the run; see `log_exported_model`."""
        return log_exported_model(
            self._client, self.run_id, folder=folder, location=location, task=task, step=step, metrics=metrics
        )

    def finish(self, outcome: Outcome, folder: RunFolder | None = None) -> int:
        """Closes the run, after delivering what ended workers left undelivered in its folder.

        Returns:
            The number of points delivered from the folder.

        Raises:
            Exception: whatever mlflow raises if the store is away; undelivered points stay in the folder.
        """
        delivered = deliver_spools(folder, self.uri, self.run_id) if folder is not None else 0
        self._client.set_terminated(self.run_id, status=STATUS[outcome])
        return delivered

    def pause(self) -> None:
        """Marks the run as one that may go on."""
        self._client.update_run(self.run_id, status="SCHEDULED")

    def log_values(self, metrics: Mapping[str, float], step: int, tags: Mapping[str, str] | None = None) -> None:
        """Records metrics and tags that the driver knows, in one request."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        held = [RunTag(name, text) for name, text in (tags or {}).items()]
        self._client.log_batch(self.run_id, metrics=points, tags=held)

    def log_folder(self, folder: Path) -> None:
        """Records a folder's files as artifacts."""
        self._client.log_artifacts(self.run_id, str(folder))

    def log_files(self, files: Mapping[str, str]) -> None:
        """Records texts as artifacts, by their names."""
        for name, text in files.items():
            self._client.log_text(self.run_id, text, name)

    def _log(self, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None) -> None:
        from mlflow.entities import Param, RunTag

        all_params = [Param(key, value) for key, value in (params or {}).items()]
        all_tags = [RunTag(key, value) for key, value in (tags or {}).items()]
        for start in range(0, max(len(all_params), len(all_tags)), MANY):
            part = slice(start, start + MANY)
            self._client.log_batch(self.run_id, params=all_params[part], tags=all_tags[part])


def find_runs(uri: str, experiment_id: str, tag: str, value: str) -> "list[Run]":
    """The runs of an experiment that have a tag with this value, of which none was deleted."""
    client = connect(uri)
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=MOST_RUNS, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _changes(held: "RunData", fields: Mapping[str, str]) -> dict[str, str]:
    """Tags for the fields that differ from the parameters the run was started with, or did in an earlier attempt."""
    return {
        f"changed.{name}": text
        for name, text in fields.items()
        if held.params.get(name, text) != text or f"changed.{name}" in held.tags
    }


def search_tags(recipe: Recipe, attempt: int) -> dict[str, str]:
    """The tags by which a run is found."""
    from importlib.metadata import version

    return {
        "task": recipe.task,
        "model": model_name(recipe),
        "optimizer": recipe.optimizer.name,
        "world_size": str(recipe.scaling.workers),
        "zero_stage": str(recipe.sharding.zero_stage),
        "lowland.version": version("lowland"),
        "attempt": str(attempt),
    }


def model_name(recipe: Recipe) -> str:
    """The folder's or hub's name of the model, or the type of one built from a configuration."""
    if isinstance(recipe, ImageClassificationRecipe) and recipe.model.architecture is not None:
        return recipe.model.architecture
    if recipe.model.path is not None:
        return recipe.model.path.rstrip("/").rpartition("/")[2] or recipe.model.path
    return str((recipe.model.config or {}).get("model_type", "unknown"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return "unknown"
