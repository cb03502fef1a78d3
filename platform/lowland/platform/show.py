"""`lowland show`: how a run stands, or several beside each other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lowland.platform.progress import SummaryRow, summary_table
from lowland.platform.runs import RECIPE, RunFolder, RunRecord, existing_run
from lowland.platform.urls import whole
from lowland.trainers.errors import DataError, UserError

if TYPE_CHECKING:
    from lowland.trainers.checkpoints import CheckpointManifest, CheckpointStore


def show(run: str, storage: str, console: Console) -> None:
    """Prints a run's status, checkpoints, latest metrics and how to go on.

    Args:
        run: name of the run.
        storage: folder or URI that holds run folders.
        console: where to print.

    Raises:
        UserError: there is no such run, or its record is damaged.
    """
    from lowland.trainers.checkpoints import CheckpointStore

    folder, record = existing_run(storage, run)
    checkpoints = _checkpoints(CheckpointStore(f"{folder.uri}/checkpoints"), console)
    metrics, source = latest_metrics(record, checkpoints)
    console.print(_summary(folder, record))
    if checkpoints:
        console.print("\nCheckpoints")
        console.print(_checkpoint_table(checkpoints, record.recipe.get("checkpoints.metric", "eval/loss")))
    else:
        console.print("\nNo checkpoint yet.")
    if metrics:
        console.print(f"\nLatest metrics, from {source}")
        console.print(_metric_table(metrics))
    console.print()
    console.print(next_step(folder, record), soft_wrap=True)


def show_side_by_side(runs: Sequence[str], storage: str, console: Console) -> None:
    """Prints what several runs have reached, and what a unigram model reaches on the same held-out text.

    Args:
        runs: names of runs.
        storage: folder or URI that holds run folders.
        console: where to print.

    Raises:
        UserError: one of the runs is not there, or its record is damaged.
    """
    found = [existing_run(storage, name) for name in runs]
    rows = [_reached(folder, record, console) for folder, record in found]
    paths = dict.fromkeys(record.recipe.get("data.path", "") for _, record in found)
    console.print(summary_table([*rows, *(row for path in paths for row in _baseline(path))]))


def latest_metrics(record: RunRecord, checkpoints: "list[CheckpointManifest]") -> tuple[Mapping[str, float], str]:
    """The run's latest metrics, without those of the machines, and where they come from.

    MLflow is ahead of the last checkpoint; but it may be out of reach, and then the checkpoint must do.
    """
    if (tracked := _tracked_metrics(record)) is not None:
        return tracked, "MLflow"
    if not checkpoints:
        return {}, ""
    last = checkpoints[-1].state
    return last.metrics, f"the checkpoint of step {last.step}; MLflow cannot be read"


def next_step(folder: RunFolder, record: RunRecord) -> str:
    """What the user may do now."""
    if record.status == "finished":
        return f"The trained model is in {folder.uri}/model."
    driver = record.driver
    if record.status == "running" and driver is not None and driver.alive():
        return f"Process {driver.pid} trains it."
    recipe = str(folder.local / RECIPE) if folder.local is not None else "RECIPE.yaml"
    return f"Go on with: lowland train {recipe} --resume auto  (logs: {folder.uri}/logs)"


def _reached(folder: RunFolder, record: RunRecord, console: Console) -> SummaryRow:
    from lowland.trainers.checkpoints import CheckpointStore

    checkpoints = _checkpoints(CheckpointStore(f"{folder.uri}/checkpoints"), console)
    metrics, _ = latest_metrics(record, checkpoints)
    return SummaryRow(
        record.name,
        metrics.get("eval/loss"),
        metrics.get("eval/perplexity"),
        metrics.get("eval/bits_per_byte"),
        metrics.get("perf/tokens_per_second"),
        checkpoints[-1].state.seconds if checkpoints else None,
        metrics.get("eval/accuracy"),
        metrics.get("perf/samples_per_second"),
    )


def _baseline(path: str) -> Iterator[SummaryRow]:
    """The unigram model of prepared data; nothing if that is not on this machine any more."""
    from lowland.platform.data_report import BASELINE_TARGETS
    from lowland.trainers.data.split import PackedSplit
    from lowland.trainers.data.unigram import unigram_baseline

    if not path or "://" in path:
        return
    try:
        splits = PackedSplit.open(path, "train"), PackedSplit.open(path, "held_out")
    except DataError:
        return
    unigram = unigram_baseline(*splits, max_train_targets=BASELINE_TARGETS)
    yield SummaryRow(f"unigram model, {path}", unigram.loss, math.exp(unigram.loss), unigram.bits_per_byte, None, None)


def _checkpoints(store: "CheckpointStore", console: Console) -> "list[CheckpointManifest]":
    readable = []
    for step in store.steps():
        try:
            readable.append(store.manifest(step))
        except DataError as error:
            console.print(str(error), style="yellow", markup=False)
    return readable


def _tracked_metrics(record: RunRecord) -> Mapping[str, float] | None:
    """The latest metrics in MLflow; None if the run has none there or the store does not answer."""
    from lowland.platform.tracking.store import VARIABLE, connect, sqlite_path

    uri, run_id = record.tracking_uri, record.mlflow_run_id
    if uri is None or run_id is None:
        return None
    path = sqlite_path(uri)
    if path is not None and not path.exists():  # connecting would make an empty one
        return None
    from mlflow.exceptions import MlflowException

    try:
        metrics = connect(whole(uri, VARIABLE)).get_run(run_id).data.metrics
    except (MlflowException, UserError):
        return None
    return {name: value for name, value in metrics.items() if not name.startswith("system/")}


def _summary(folder: RunFolder, record: RunRecord) -> Table:
    table = Table.grid(padding=(0, 2))
    rows = {
        "run": record.name,
        "status": record.status,
        "folder": folder.uri,
        "started": f"{record.created_at:%Y-%m-%d %H:%M:%S} UTC, {record.attempts} times",
        "updated": f"{record.updated_at:%Y-%m-%d %H:%M:%S} UTC",
        "MLflow": f"run {record.mlflow_run_id} in {record.tracking_uri}" if record.mlflow_run_id else "not recorded",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _checkpoint_table(checkpoints: "list[CheckpointManifest]", metric: str) -> Table:
    table = Table()
    for name in ("step", "tokens", metric, "MiB", "workers", "ZeRO"):
        table.add_column(name, justify="right")
    for manifest in checkpoints:
        value = manifest.state.metrics.get(metric)
        size = sum(entry.size for entry in manifest.files) / 2**20
        table.add_row(
            str(manifest.state.step),
            f"{manifest.state.tokens:,}",
            "" if value is None else f"{value:.4f}",
            f"{size:.1f}",
            str(manifest.world_size),
            str(manifest.zero_stage),
        )
    return table


def _metric_table(metrics: Mapping[str, float]) -> Table:
    table = Table(show_header=False)
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.6g}")
    return table
