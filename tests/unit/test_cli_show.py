"""`lowland show` tells how a run stands, also while MLflow is out of reach."""

import io
import json
import re

import pytest
from rich.console import Console
from support.corpus import prepared

from lowland.platform.runs import Driver, RunFolder, RunRecord
from lowland.platform.show import show, show_side_by_side
from lowland.trainers.checkpoints import CheckpointManifest, CheckpointStore, TrainState
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.data.unigram import unigram_baseline
from lowland.trainers.errors import UserError

FIELDS = {"name": "small", "checkpoints.metric": "eval/loss", "length": "10 steps"}


def make_run(storage, status="interrupted", steps=(), **changes):
    folder = RunFolder.open(str(storage), "small")
    folder.create()
    folder.write(RunRecord.new("small", FIELDS).with_(status=status, attempts=2, **changes))
    store = CheckpointStore(f"{folder.uri}/checkpoints")
    for step in steps:
        store.begin(step)
        file = store.add(step, "weights", lambda path: path.write_bytes(b"0" * 2**20))
        state = TrainState(step=step, tokens=1000 * step, metrics={"eval/loss": 2.5 / step, "train/lr": 0.1})
        store.commit(
            step,
            CheckpointManifest(state=state, optimizer="adamw", world_size=2, zero_stage=3, metadata={}, files=(file,)),
        )
    return folder


def shown(storage):
    stream = io.StringIO()
    show("small", str(storage), Console(file=stream, width=200, highlight=False))
    return stream.getvalue()


def rows(text):
    """The cells of the tables' rows."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_checkpoints_and_their_metrics_are_shown(tmp_path):
    make_run(tmp_path, steps=(5, 10))
    text = shown(tmp_path)
    assert rows(text) == [
        ["5", "5,000", "0.5000", "1.0", "2", "3"],
        ["10", "10,000", "0.2500", "1.0", "2", "3"],
        ["eval/loss", "0.25"],
        ["train/lr", "0.1"],
    ]
    assert "from the checkpoint of step 10; MLflow cannot be read" in text
    assert "interrupted" in text
    assert "2 times" in text


@pytest.mark.parametrize("status", ["failed", "interrupted", "running", "created"])
def test_an_unfinished_run_says_how_to_go_on(tmp_path, status):
    gone = Driver.current().model_copy(update={"started": 0.0})
    folder = make_run(tmp_path, status, driver=gone)
    text = shown(tmp_path)
    assert "No checkpoint yet." in text
    assert f"lowland train {folder.local}/recipe.yaml" in text
    assert f"{folder.local}/logs" in text


def test_a_running_run_names_its_process(tmp_path):
    make_run(tmp_path, "running", driver=Driver.current())
    text = shown(tmp_path)
    assert f"Process {Driver.current().pid} trains it." in text
    assert "lowland train" not in text


def test_a_finished_run_names_its_model(tmp_path):
    folder = make_run(tmp_path, "finished")
    assert f"The trained model is in {folder.uri}/model." in shown(tmp_path)


def test_metrics_come_from_mlflow_where_it_answers(tmp_path):
    from lowland.platform.tracking.store import connect

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(uri)
    run = client.create_run(client.create_experiment("shown"))
    client.log_metric(run.info.run_id, "train/loss", 1.5, step=12)
    client.log_metric(run.info.run_id, "system/cpu", 99.0, step=12)
    make_run(tmp_path, steps=(5,), tracking_uri=uri, mlflow_run_id=run.info.run_id)
    text = shown(tmp_path)
    assert rows(text)[1:] == [["train/loss", "1.5"]]
    assert "Latest metrics, from MLflow" in text


def test_a_store_that_is_gone_is_not_made_anew(tmp_path):
    make_run(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/gone.db", mlflow_run_id="0")
    shown(tmp_path)
    assert not (tmp_path / "gone.db").exists()


def test_a_damaged_checkpoint_is_told_and_the_others_are_shown(tmp_path):
    folder = make_run(tmp_path, steps=(5, 10))
    (manifest,) = (folder.local / "checkpoints" / "step-00000005").glob("*.json")
    manifest.write_text(json.dumps({"state": 3}))
    text = shown(tmp_path)
    assert "not a readable checkpoint manifest" in text
    assert rows(text)[0][0] == "10"


def test_an_unknown_run_names_the_nearest(tmp_path):
    make_run(tmp_path)
    with pytest.raises(UserError, match="there is small"):
        show("smal", str(tmp_path), Console(file=io.StringIO()))


def test_several_runs_are_shown_in_one_table_with_the_unigram_model_of_their_data(tmp_path):
    data = prepared(tmp_path / "data")
    for name, loss in (("first", 2.0), ("second", 1.5)):
        folder = RunFolder.open(str(tmp_path / "runs"), name)
        folder.create()
        folder.write(RunRecord.new(name, {**FIELDS, "data.path": str(data)}))
        store = CheckpointStore(f"{folder.uri}/checkpoints")
        store.begin(7)
        metrics = {"eval/loss": loss, "eval/bits_per_byte": 2 * loss, "perf/tokens_per_second": 1234.0}
        state = TrainState(step=7, seconds=65.0, metrics=metrics)
        store.commit(
            7, CheckpointManifest(state=state, optimizer="adamw", world_size=1, zero_stage=0, metadata={}, files=())
        )
    stream = io.StringIO()
    console = Console(file=stream, width=400, highlight=False)
    show_side_by_side(["first", "second"], str(tmp_path / "runs"), console)
    lines = [re.split(r"\s{2,}", line.strip()) for line in stream.getvalue().splitlines()]
    assert lines[1:3] == [
        ["first", "2.0000", "-", "4.0000", "1,234", "1:05"],
        ["second", "1.5000", "-", "3.0000", "1,234", "1:05"],
    ]
    unigram = unigram_baseline(PackedSplit.open(data, "train"), PackedSplit.open(data, "held_out"))
    assert len(lines) == 4  # once for both
    assert lines[3][:2] == [f"unigram model, {data}", f"{unigram.loss:.4f}"]
    assert lines[3][3] == f"{unigram.bits_per_byte:.4f}"


def test_runs_whose_data_is_gone_are_shown_without_it(tmp_path):
    for name in ("first", "second"):
        folder = RunFolder.open(str(tmp_path), name)
        folder.create()
        folder.write(RunRecord.new(name, {**FIELDS, "data.path": str(tmp_path / "gone")}))
    stream = io.StringIO()
    show_side_by_side(["first", "second"], str(tmp_path), Console(file=stream, width=200))
    assert [line.split() for line in stream.getvalue().splitlines()[1:]] == [
        ["first", "-", "-", "-", "-", "-"],
        ["second", "-", "-", "-", "-", "-"],
    ]
