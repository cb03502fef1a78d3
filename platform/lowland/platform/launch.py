"""`train`: from a recipe to a trained model, from the first check to the summary."""

import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from lowland.platform.cluster import Cluster, connect, own_cpus
from lowland.platform.hub_data import fetch_data, with_commit
from lowland.platform.progress import SummaryRow, summary_table
from lowland.platform.recipe import CausalLMRecipe, ImageClassificationRecipe, Recipe
from lowland.platform.recipe.dump import dump, flatten
from lowland.platform.resource_checks import reader_cpus
from lowland.platform.resume import Resume, as_now, decide
from lowland.platform.runs import RECIPE, RunFolder, RunRecord
from lowland.platform.startup import command_started
from lowland.platform.tracking.store import check_store, first_line, resolve_uri
from lowland.platform.urls import redact
from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    from lowland.platform.tracking.run import TrackedRun

Status = Literal["finished", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended that did not fail."""

    status: Status
    step: int
    metrics: dict[str, float]
    """The latest training and evaluation metrics."""
    folder: str
    """Run folder: path or URI."""
    mlflow_run_id: str
    tracking_uri: str

    @property
    def exit_code(self) -> int:
        """0 if the training came to its end, 130 if it was interrupted."""
        return 0 if self.status == "finished" else 130


def train(recipe: Recipe, *, resume: str, address: str | None, console: Console) -> Outcome:
    """Trains what a recipe describes, on a cluster that is joined or started for it.

    Args:
        recipe: the run.
        resume: `auto`, `never` or the name of the run to continue; see `lowland.platform.resume`.
        address: the Ray cluster to join; None takes RAY_ADDRESS, else starts one on this machine.
        console: where progress and the result are shown.

    Raises:
        UserError: something can be corrected; nothing was started.
        RunError: the training failed; the message says where its output is.
    """
    times = {"command": command_started(), "imports": time.time()}
    if resume not in ("auto", "never"):
        recipe = recipe.model_copy(update={"name": resume})
    folder = RunFolder.open(recipe.storage, recipe.name)
    record = folder.read()
    if record is not None:
        record = record.with_(recipe=as_now(record.recipe, recipe))
    recipe = with_commit(recipe, record.recipe if record is not None else None)
    decision = decide(resume, recipe.name, record, flatten(recipe))
    if record is None:
        record = RunRecord.new(recipe.name, flatten(recipe))
    elif isinstance(decision, Resume):
        console.print(f"continuing run {recipe.name!r} of {folder.uri}", highlight=False)
        for change in decision.changes:
            console.print(f"  changed: {change}", highlight=False)
    uri = resolve_uri(recipe.tracking, recipe.storage)
    with ThreadPoolExecutor(1) as background:
        # Importing MLflow and making its tables takes seconds; so does Ray's start, meanwhile.
        experiment = background.submit(check_store, uri, recipe.tracking.experiment)
        with _connected(recipe, address) as cluster:
            times["ray"] = time.time()
            run = _begin(recipe, folder, record, uri, experiment, cluster, console)
            times["checks"] = time.time()
            return run.train(times, background, console)


@dataclass
class _Run:
    """A run that has begun: its record, its MLflow run, and how both are closed."""

    recipe: Recipe
    folder: RunFolder
    record: RunRecord
    tracked: "TrackedRun"

    def train(self, times: dict[str, float], background: ThreadPoolExecutor, console: Console) -> Outcome:
        """Trains, and closes the run as what it became."""
        described = background.submit(self._describe)
        task = {
            "recipe": self.recipe.model_dump(mode="json"),
            "run_id": self.tracked.run_id,
            "tracking_uri": self.tracked.uri,
            "created": self.tracked.created,
            "attempt": self.record.attempts,
            "times": times,
        }
        try:
            from lowland.platform.ray_run import run_on_ray  # takes seconds, in which Ctrl-C may come

            result = run_on_ray(self.recipe, self.folder, task, console)
        except KeyboardInterrupt:
            self._close("interrupted", console)
            console.print(f"interrupted; {self._way_on()}", soft_wrap=True)
            raise
        except BaseException:
            self._close("failed", console)
            raise
        _report_trouble(described, console)
        status: Status = "interrupted" if result["interrupted"] else "finished"
        if status == "finished" and self.recipe.tracking.log_model and self.recipe.checkpoints.export:
            self._log_model(result, console)
        self._close(status, console)
        outcome = Outcome(
            status, result["step"], result["metrics"], self.folder.uri, self.tracked.run_id, self.tracked.uri
        )
        self._summarise(outcome, result, console)
        return outcome

    def _describe(self) -> None:
        """Records what is trained on what; while the workers start, since it takes a second or two."""
        self.tracked.log_recipe(self.recipe, self.record.attempts)
        self.tracked.log_environment()
        if isinstance(self.recipe, CausalLMRecipe):
            self._describe_text(self.recipe)
        else:
            self._describe_images(self.recipe)

    def _describe_text(self, recipe: CausalLMRecipe) -> None:
        from lowland.trainers.data.store import manifest_of

        manifest = manifest_of(recipe.data.path)
        splits = {f"{name}_{key}": getattr(info, key) for name, info in manifest.splits.items() for key in _SHOWN}
        profile = {"sequence_length": manifest.sequence_length, "tokenizer": manifest.tokenizer.kind, **splits}
        self.tracked.log_dataset(recipe.data.path, manifest.digest, profile)

    def _describe_images(self, recipe: ImageClassificationRecipe) -> None:
        """The files by names and sizes; how many images are in them, and of what kind, the training records."""
        from lowland.trainers.data.images.places import places
        from lowland.trainers.data.images.sources import files_digest, image_files

        files = image_files(places(recipe.data).path)
        profile = {"files": len(files), "bytes": sum(files.values())}
        self.tracked.log_dataset(recipe.data.path, files_digest(files), profile)

    def _log_model(self, result: dict[str, Any], console: Console) -> None:
        """Lists the exported model in MLflow; the weights stay in the run folder."""
        metrics = {name: value for name, value in result["metrics"].items() if name.startswith("eval/")}
        with tempfile.TemporaryDirectory() as scratch:
            local = self.folder.local / "model" if self.folder.local else _small_files(self.folder, Path(scratch))
            try:
                self.tracked.log_model(local, f"{self.folder.uri}/model", self.recipe.task, result["step"], metrics)
            except Exception as error:
                console.print(f"the model could not be listed in MLflow: {first_line(error)}", style="yellow")

    def _close(self, status: Literal["finished", "failed", "interrupted"], console: Console) -> None:
        """Writes how the run ended, here and in MLflow; a store that is away loses nothing."""
        self.folder.write(self.record.with_(status=status))
        try:
            self.tracked.finish(status, self.folder)
        except Exception as error:
            console.print(
                f"MLflow could not be told that the run ended ({first_line(error)}); "
                "metrics that are missing there are kept in the run folder and sent by `lowland ui`",
                style="yellow",
            )

    def _summarise(self, outcome: Outcome, result: dict[str, Any], console: Console) -> None:
        metrics = outcome.metrics
        row = SummaryRow(
            self.recipe.name,
            metrics.get("eval/loss"),
            metrics.get("eval/perplexity"),
            metrics.get("eval/bits_per_byte"),
            metrics.get("perf/tokens_per_second"),
            result["seconds"],
            metrics.get("eval/accuracy"),
            metrics.get("perf/samples_per_second"),
        )
        console.print(summary_table([row]))
        if outcome.status == "interrupted":
            console.print(f"interrupted at step {outcome.step}; checkpoint {result['checkpoint']}", soft_wrap=True)
            console.print(self._way_on(), soft_wrap=True)
        elif self.recipe.checkpoints.export:
            console.print(f"model: {outcome.folder}/model", soft_wrap=True, highlight=False)
        console.print(f"MLflow: lowland ui --uri {redact(outcome.tracking_uri)}", soft_wrap=True, highlight=False)

    def _way_on(self) -> str:
        return f"go on with: lowland train RECIPE --resume {self.recipe.name}"


_SHOWN = ("rows", "tokens", "targets", "documents")


def _connected(recipe: Recipe, address: str | None) -> AbstractContextManager[Cluster]:
    scaling = recipe.scaling
    # Workers may share cores where Ray runs on this machine alone: CPUs only count how many fit.
    cpus = max(own_cpus(), int(scaling.workers * scaling.cpus_per_worker) + reader_cpus(recipe) + 1)
    gpus = None if scaling.gpus_per_worker else 0
    return connect(address, cpus=cpus, gpus=gpus, start_timeout=scaling.start_timeout)


def _begin(
    recipe: Recipe,
    folder: RunFolder,
    record: RunRecord,
    uri: str,
    experiment: "Future[str]",
    cluster: Cluster,
    console: Console,
) -> _Run:
    """Checks everything that can be known to fail; then the run exists, here and in MLflow."""
    from lowland.platform.preflight import preflight

    # Two processes or threads that make an SQLite store at once disturb each other: the first one ends first.
    trouble = experiment.exception()
    if trouble is not None and not isinstance(trouble, UserError):
        raise trouble
    preflight(recipe, cluster, folder, uri)
    fetch_data(recipe, cluster, console)
    from lowland.platform.tracking.run import TrackedRun

    folder.create()
    if record.mlflow_run_id is not None:
        tracked = TrackedRun.resume(uri, record.mlflow_run_id)
    else:
        tracked = TrackedRun.start(uri, experiment.result(), recipe.name)
    running = record.next_attempt(flatten(recipe)).with_(
        tracking_uri=redact(uri), experiment=recipe.tracking.experiment, mlflow_run_id=tracked.run_id
    )
    folder.write(running)
    folder.write_bytes(dump(recipe).encode(), RECIPE)
    return _Run(recipe, folder, running, tracked)


def _report_trouble(described: "Future[None]", console: Console) -> None:
    error = described.exception()
    if error is not None:
        console.print(f"the run's description in MLflow is incomplete: {first_line(error)}", style="yellow")


def _small_files(folder: RunFolder, target: Path) -> Path:
    """A local copy of a remote model's configuration and card."""
    from pyarrow import fs

    for info in folder.filesystem.get_file_info(fs.FileSelector(folder.file("model"))):
        if info.type == fs.FileType.File and not info.base_name.endswith(".safetensors"):
            (target / info.base_name).write_bytes(folder.read_bytes("model", info.base_name))
    return target
