"""`lowland landscape`: the held-out loss around a run's weights, or between those of two runs."""

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowland.platform.recipe import Recipe, load_recipe
from lowland.platform.runs import RECIPE, RunFolder, RunRecord, existing_run
from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lowland.trainers.landscape import LoadedModel

Place = TypeVar("Place")

FOLDER = "landscape"
"""Of the run folder, and of the MLflow run's artifacts."""
LOSS = "eval/loss"


@dataclass(frozen=True)
class Look:
    """Where the loss is looked at."""

    directions: int
    """Random ones around a run: 1 for a line, 2 for a plane."""
    points: int
    """On each axis, at least 2."""
    span: float
    """How far each direction is followed both ways, in norms of the weights' filters; > 0."""
    seed: int
    """Of the directions, and of the order in which permutations are matched."""
    step: int | None
    """Of the checkpoint; None takes the newest that is whole, which is all that a second run gives."""
    overrides: Sequence[str] = ()
    """Changes of the recipe, `a.b=value`: how much is evaluated, on what."""


@dataclass(frozen=True)
class Points:
    """Metrics at points, and what is to be said of them."""

    label: str
    """Name of the files."""
    title: str
    columns: Mapping[str, Sequence[float | bool]]
    """Coordinates first, then the task's metrics; a row a point."""
    summary: str


def landscape(run: str, other: str | None, storage: str, look: Look, console: Console) -> None:
    """Evaluates, draws, and keeps picture and values in the run folder and as artifacts of its MLflow run.

    Args:
        run: name of a run with a checkpoint.
        other: name of a second one, to look at the line between the two; None looks around the first.
        storage: folder or URI that holds run folders.
        look: where.
        console: where to print.

    Raises:
        UserError: there is no such run or checkpoint, its data are gone, or the two are not the same network.
    """
    if look.points < 2 or (other is None and look.points % 2 == 0):
        allowed = "at least 2" if other is not None else "odd, so that the run's own weights are one of them"
        raise UserError(f"--points {look.points}: must be {allowed}")
    folder, record, recipe = _run(run, storage, look.overrides)
    model = _load(folder, recipe, look.step)
    if other is None:
        found = around(run, model, look, console)
    else:
        found = between(run, model, other, _load_other(other, storage), look, console)
    files = _files(found)
    folder.filesystem.create_dir(folder.file(FOLDER), recursive=True)
    for name, content in files.items():
        folder.write_bytes(content, FOLDER, name)
        console.print(f"wrote {folder.uri}/{FOLDER}/{name}", soft_wrap=True)
    console.print(found.summary)
    _record(record, recipe, storage, files, console)


def around(run: str, model: "LoadedModel", look: Look, console: Console) -> Points:
    """The loss on a line or a plane of filter-normalised random directions."""
    import torch

    from lowland.trainers.landscape import filter_normalised, moved

    names = ("alpha", "beta")[: look.directions]
    directions = [filter_normalised(model.weights, look.seed + index) for index in range(look.directions)]
    axis = torch.linspace(-look.span, look.span, look.points, dtype=torch.float64).tolist()
    axis[look.points // 2] = 0.0
    places = list(product(axis, repeat=look.directions))
    rows = _evaluated(places, lambda place: model.evaluate(moved(model.weights, directions, place)), console)
    columns = {name: [place[index] for place in places] for index, name in enumerate(names)}
    columns |= {name: [row[name] for row in rows] for name in rows[0]}
    losses = columns[LOSS]
    middle = losses[len(places) // 2]
    lowest = min(range(len(places)), key=losses.__getitem__)
    summary = (
        f"step {model.step}: {LOSS} {middle:.4f} at the run's weights, {max(losses):.4f} at the most, "
        f"{losses[lowest]:.4f} at the least, at ({', '.join(f'{x:g}' for x in places[lowest])})"
    )
    kind = "line" if look.directions == 1 else "plane"
    return Points(f"{kind}-step-{model.step}-seed-{look.seed}", f"{run}, step {model.step}", columns, summary)


def between(run: str, model: "LoadedModel", other: str, second: "LoadedModel", look: Look, console: Console) -> Points:
    """The loss on the line to a second run's weights: as they are, and permuted to match the first's."""
    import torch

    from lowland.trainers.landscape import barrier, interpolated

    ends = _ends(run, model, other, second, look.seed)
    ts: list[float] = torch.linspace(0, 1, look.points, dtype=torch.float64).tolist()
    places = [(matched, t) for matched in ends for t in ts]

    def evaluate(place: tuple[bool, float]) -> dict[str, float]:
        matched, t = place
        # At the ends too: a running average lags, and beside fresh statistics its lag would look like a wall.
        return model.evaluate(interpolated(model.weights, ends[matched], t), own_statistics=False)

    rows = _evaluated(places, evaluate, console)
    columns: dict[str, Sequence[float | bool]] = {"t": [t for _, t in places], "matched": [m for m, _ in places]}
    columns |= {name: [row[name] for row in rows] for name in rows[0]}
    losses = {m: [row[LOSS] for (matched, _), row in zip(places, rows, strict=True) if matched == m] for m in ends}
    said = [f"{barrier(ts, values):.4f} {'matched' if m else 'as they are'}" for m, values in losses.items()]
    summary = f"{LOSS} {losses[False][0]:.4f} and {losses[False][-1]:.4f} at the ends; barrier {', '.join(said)}"
    if True not in ends:
        summary += "; no permutations are known of this network, so its units were not matched"
    label = f"to-{other}-steps-{model.step}-{second.step}-seed-{look.seed}"
    return Points(label, f"{run}, step {model.step}, to {other}, step {second.step}", columns, summary)


def _ends(
    run: str, model: "LoadedModel", other: str, second: "LoadedModel", seed: int
) -> "dict[bool, Mapping[str, Tensor]]":
    """The second run's weights, and (under True) permuted, where the network's permutations are known."""
    from lowland.trainers.landscape import match_weights, permutation_spec, permuted, require_alike

    try:
        require_alike(model.weights, second.weights)
    except ValueError as error:
        raise UserError(f"{run} and {other} are not the same network: {error}") from None
    ends: dict[bool, Mapping[str, Tensor]] = {False: second.weights}
    spec = permutation_spec(model.module)
    if spec is not None:
        ends[True] = permuted(second.weights, spec, match_weights(spec, model.weights, second.weights, seed))
    return ends


def _run(run: str, storage: str, overrides: Sequence[str]) -> tuple[RunFolder, RunRecord, Recipe]:
    """A run and its recipe, checked as for a training."""
    folder, record = existing_run(storage, run)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / RECIPE
        path.write_bytes(folder.read_bytes(RECIPE))
        return folder, record, load_recipe(path, overrides)


def _load(folder: RunFolder, recipe: Recipe, step: int | None) -> "LoadedModel":
    import torch

    from lowland.trainers.landscape import LoadedModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return LoadedModel(recipe, f"{folder.uri}/checkpoints", step, device)


def _load_other(other: str, storage: str) -> "LoadedModel":
    folder, _, recipe = _run(other, storage, ())
    return _load(folder, recipe, None)


def _evaluated(
    places: Sequence[Place], evaluate: Callable[[Place], dict[str, float]], console: Console
) -> list[dict[str, float]]:
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        return [evaluate(place) for place in progress.track(places)]


def _files(found: Points) -> dict[str, bytes]:
    from lowland.platform.landscape_pictures import picture

    return {f"{found.label}.png": picture(found.title, found.columns, LOSS), f"{found.label}.parquet": _parquet(found)}


def _parquet(found: Points) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    stream = io.BytesIO()
    table = pa.table(found.columns).replace_schema_metadata({"title": found.title, "summary": found.summary})
    parquet.write_table(table, stream)
    return stream.getvalue()


def _record(record: RunRecord, recipe: Recipe, storage: str, files: Mapping[str, bytes], console: Console) -> None:
    """Adds the files to the run's artifacts; a store that is away is told and costs nothing but that."""
    from lowland.platform.tracking.store import connect, first_line, resolve_uri

    if record.mlflow_run_id is None:
        return
    uri = resolve_uri(recipe.tracking, storage)
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            (Path(scratch) / name).write_bytes(content)
        try:
            client.log_artifacts(record.mlflow_run_id, scratch, FOLDER)
        except (MlflowException, OSError) as error:
            console.print(f"not recorded in MLflow: {first_line(error)}", style="yellow", markup=False)
