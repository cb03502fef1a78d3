"""`lowland landscape` on runs that training left: pictures, values and MLflow's artifacts."""

import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from rich.console import Console
from support.corpus import prepared
from support.ray_runs import client, recipe
from support.training import LLAMA, TORCH, train
from typer.testing import CliRunner

from lowland.platform import cli
from lowland.platform.landscape import Look, landscape
from lowland.platform.landscape_pictures import picture
from lowland.platform.recipe.dump import dump, flatten
from lowland.platform.runs import RECIPE, RunFolder, RunRecord
from lowland.trainers.errors import UserError

SHORT: dict[str, Any] = {
    **TORCH,
    "length": "8 steps",
    "scaling": {"workers": 1},
    "evaluation": {"every": None},
    "checkpoints": {"every": None, "export": False},
}
RUNS: dict[str, dict[str, Any]] = {
    "one": {"seed": 1},
    "two": {"seed": 2},
    "small": {"model": {"config": {**LLAMA, "hidden_size": 24}}},
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trained runs; MLflow knows `one`."""
    root = tmp_path_factory.mktemp("runs")
    text = prepared(root / "text")
    store = client(root)
    experiment = store.create_experiment("lowland", artifact_location=(root / "artifacts").as_uri())
    for name, changes in RUNS.items():
        made = recipe(text, root, name, **SHORT | changes)
        folder = RunFolder.open(str(root), name)
        folder.create()
        folder.write_bytes(dump(made).encode(), RECIPE)
        run_id = store.create_run(experiment).info.run_id if name == "one" else None
        folder.write(RunRecord.new(name, flatten(made)).with_(status="finished", mlflow_run_id=run_id))
        train(made, root / name)
    return root


def look(**changes: Any) -> Look:
    return Look(**{"directions": 1, "points": 3, "span": 0.5, "seed": 0, "step": None, **changes})


def looked(storage: Path, run: str = "one", other: str | None = None, **changes: Any) -> tuple[str, dict[str, Any]]:
    """What is printed, and the columns of the newest table."""
    stream = io.StringIO()
    landscape(run, other, str(storage), look(**changes), Console(file=stream, width=300, highlight=False))
    newest = max((storage / run / "landscape").glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(newest) in stream.getvalue()
    return stream.getvalue(), parquet.read_table(newest).to_pydict()


def test_a_line_has_the_reported_loss_in_its_middle(storage: Path) -> None:
    text, columns = looked(storage)
    assert columns["alpha"] == [-0.5, 0.0, 0.5]
    assert columns["eval/loss"][1] < min(columns["eval/loss"][0], columns["eval/loss"][2])
    assert f"eval/loss {columns['eval/loss'][1]:.4f} at the run's weights" in text
    store = client(storage)
    (run,) = store.search_runs([store.get_experiment_by_name("lowland").experiment_id])
    artifacts = {item.path for item in store.list_artifacts(run.info.run_id, "landscape")}
    assert artifacts == {"landscape/line-step-8-seed-0.png", "landscape/line-step-8-seed-0.parquet"}


def test_a_plane_is_a_grid_through_the_same_middle(storage: Path) -> None:
    _, line = looked(storage, "two")
    text, plane = looked(storage, "two", directions=2, overrides=("evaluation.max_sequences=8",))
    assert list(zip(plane["alpha"], plane["beta"], strict=True)) == [
        (a, b) for a in (-0.5, 0.0, 0.5) for b in (-0.5, 0.0, 0.5)
    ]
    # The held-out split has eight rows, and both first directions are one.
    on_line = [loss for loss, beta in zip(plane["eval/loss"], plane["beta"], strict=True) if beta == 0]
    assert on_line == pytest.approx(line["eval/loss"], rel=1e-6)
    assert "plane-step-8-seed-0.png" in text


def test_between_two_runs_units_are_matched(storage: Path) -> None:
    text, columns = looked(storage, "one", "two", points=3)
    assert columns["t"] == [0, 0.5, 1] * 2
    assert columns["matched"] == [False] * 3 + [True] * 3
    losses = columns["eval/loss"]
    assert losses[0] == losses[3]
    assert losses[2] == pytest.approx(losses[5], rel=1e-5)
    assert "at the ends; barrier" in text
    assert "to-two-steps-8-8-seed-0.png" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": 4}, "--points 4: must be odd"),
        ({"other": "two", "points": 1}, "--points 1: must be at least 2"),
        ({"other": "small"}, r"one and small are not the same network: .* has shape \(\d+, 36\)"),
        ({"other": "three"}, "no run 'three'"),
        ({"step": 5}, "no checkpoint of step 5; there are those of steps 8"),
        ({"overrides": ("evaluation.max_sequence=1",)}, "nearest: max_sequences"),
    ],
)
def test_what_cannot_be_looked_at_is_told(storage: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        looked(storage, **arguments)


def test_values_that_are_not_finite_are_left_blank() -> None:
    axis = [-1.0, 0.0, 1.0]
    plane = {
        "alpha": [a for a in axis for _ in axis],
        "beta": axis * 3,
        "loss": [float("nan"), 1, 2, 3, 4, 5, 6, 7, 1e9],
    }
    constant = {**plane, "loss": [2.0] * 9}
    assert picture("title", plane, "loss") != picture("title", constant, "loss")
    assert picture("title", {**plane, "loss": [float("inf")] * 9}, "loss").startswith(b"\x89PNG")


def test_the_command_passes_on_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    module = types.SimpleNamespace(Look=Look, landscape=lambda *arguments: calls.append(arguments[:4]))
    monkeypatch.setitem(sys.modules, "lowland.platform.landscape", module)
    words = ["one", "--with", "two", "--directions", "2", "--points", "5", "--span", "2", "--step", "7", "--seed", "3"]
    more = ["--set", "seed=1", "--storage", "there"]
    assert CliRunner().invoke(cli.app, ["landscape", *words, *more]).exit_code == 0
    assert calls == [("one", "two", "there", Look(2, 5, 2.0, 3, 7, ["seed=1"]))]
