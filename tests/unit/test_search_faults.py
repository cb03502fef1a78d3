"""What a driver that dies may leave, and how the next one finds it."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from recipe_files import write_recipe
from typer.testing import CliRunner

from lowland.platform import cli
from lowland.platform.recipe import load_recipe
from lowland.platform.runs import Driver, RunFolder
from lowland.platform.search.jobs import Outcome
from lowland.platform.search.journal import mend
from lowland.platform.search.ledger import total
from lowland.platform.search.policies import Promotion
from lowland.platform.search.same import refuse_another
from lowland.platform.search.setting import Setting, read_setting
from lowland.platform.search.space import BoundSpace
from lowland.platform.search.start import changed, open_study
from lowland.platform.search.table import State, state_line
from lowland.platform.search.trial_runs import TrialRuns
from lowland.platform.search.trials import Segment, TrialView
from lowland.platform.tracking.run import TrackedRun, find_runs
from lowland.platform.tracking.store import check_store, connect
from lowland.search_spaces import Space
from lowland.trainers.errors import UserError

LR = "optimizer.lr"
SPACE = {"description": "", "parameters": {LR: {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}}}


def journal(file: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(file)))


def test_a_half_written_record_and_a_dead_owners_lock_do_not_stop_the_next_driver(tmp_path: Path):
    file = tmp_path / "trials.journal"
    mend(file, alone=True)
    assert not file.exists()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    first = optuna.create_study(storage=journal(file), study_name="a")
    first.ask()
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code":4,"worker_id":"' + b"x" * 200_000)
    (tmp_path / "trials.journal.lock").symlink_to(file)
    mend(file, alone=True)
    assert file.read_bytes() == whole
    second = optuna.load_study(storage=journal(file), study_name="a")
    second.ask()
    assert [t.number for t in optuna.load_study(storage=journal(file), study_name="a").trials] == [0, 1]
    file.write_bytes(b"never a whole line")
    mend(file, alone=False)
    assert file.read_bytes() == b""


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    recipe = load_recipe(write_recipe(tmp_path / "given"), [f"storage={tmp_path / 'runs'}"])
    return Setting(
        recipe=recipe,
        space=Space.model_validate(SPACE),
        metric="eval/loss",
        direction="minimize",
        trials=4,
        budget=None,
        parallel=None,
        sampler="random",
        policy="promotion",
        seed=0,
        tracking_uri="",
    )


def test_a_resumed_search_does_not_propose_the_same_again(setting: Setting):
    policy = Promotion(51)
    drawn = []
    for _ in range(3):
        study = open_study(setting)
        drawn += [study.trial(study.next(policy).trial).parameters[LR] for _ in range(2)]
    assert len(set(drawn)) == 6


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["study", *map(str, arguments)])


def test_a_command_that_resumes_must_mean_the_same_search(setting: Setting, tmp_path: Path):
    setting.write()
    held = changed(setting.recipe.storage, setting.name)
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text(json.dumps(SPACE))
    other.write_text(json.dumps(SPACE).replace("0.1", "0.2"))
    refuse_another(held, setting.recipe)
    refuse_another(held, setting.recipe, spaces=[str(same)], metric=["eval/loss:minimize"], direction="minimize")
    with pytest.raises(UserError, match=r"optimizer.lr: FloatDistribution\(high=0.1.* -> FloatDistribution\(high=0.2"):
        refuse_another(held, setting.recipe, spaces=[str(other)])
    with pytest.raises(
        UserError,
        match="direction: minimize -> maximize; policy: promotion -> none; "
        "metric: eval/loss:minimize -> eval/top1:maximize",
    ):
        refuse_another(held, setting.recipe, metric=["eval/top1"], direction="maximize", policy="none")
    with pytest.raises(UserError, match="metric: eval/loss:minimize -> eval/loss:maximize"):
        refuse_another(held, setting.recipe, metric=["eval/loss:maximize"])
    scaling = setting.recipe.scaling.model_copy(update={"max_failures": 77})
    with pytest.raises(UserError, match=r"scaling\.max_failures: \d+ -> 77"):
        refuse_another(held, setting.recipe.model_copy(update={"scaling": scaling}))
    with pytest.raises(UserError, match="seed: 0 -> 7"):
        refuse_another(held, setting.recipe.model_copy(update={"seed": 7}))
    held = held.with_(constraints=("memory <= 20",), database="postgresql://me:secret@host/name", price="2usd")
    said = {"constraints": ["memory <= 20"], "database": "postgresql://me@host/name", "price": "2usd", "seed": 0}
    refuse_another(held, setting.recipe, **{**said, "database": held.database})
    for name, value, message in (
        ("constraints", ["memory <= 30"], "constraints: memory <= 20 -> memory <= 30"),
        ("price", "3usd", "price: 2usd -> 3usd"),
        ("seed", 3, "seed: 0 -> 3"),
        ("database", "sqlite:////elsewhere.db", r"database: postgresql://(?!.*secret).* -> sqlite:////elsewhere.db"),
        ("warm_start", ["early"], "--warm-start counts when a search begins"),
        ("known_lr", "1e-3@width=8", "--known-lr counts"),
    ):
        with pytest.raises(UserError, match=message):
            refuse_another(held, setting.recipe, **{name: value})


def test_a_damaged_study_is_told_and_the_others_are_listed(setting: Setting, tmp_path: Path):
    setting.write()
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "search.json").write_text('{"metric": 3')
    (tmp_path / "runs" / "older").mkdir()
    older = json.loads((setting.folder / "search.json").read_text()) | {"metric": None}
    (tmp_path / "runs" / "older" / "search.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"broken/search.json cannot be read .*restore it or move the folder"):
        read_setting(setting.recipe.storage, "broken")
    with pytest.raises(UserError, match=r"older/search.json cannot be read \(metric: "):
        read_setting(setting.recipe.storage, "older")
    listed = invoke("list", "--storage", tmp_path / "runs")
    assert listed.exit_code == 0
    assert setting.name in listed.output
    assert "broken: " in listed.output


def test_a_search_whose_driver_is_gone_is_not_asked_to_stop(setting: Setting):
    gone = Driver.current().model_copy(update={"started": 1.0})
    setting.with_(driver=gone, status="running").write()
    told = invoke("stop", setting.name, "--storage", setting.recipe.storage)
    assert "is gone" in told.output
    assert not (setting.folder / "stop").exists()
    shown = invoke("show", setting.name, "--storage", setting.recipe.storage)
    assert "the process that led it is gone; go on with: lowland study resume" in shown.output
    setting.with_(driver=Driver.current(), status="running").write()
    assert "is gone" not in invoke("show", setting.name, "--storage", setting.recipe.storage).output


def test_what_is_shown_as_the_best_is_what_the_leaderboard_has_first():
    trials = [
        TrialView(0, {}, {3: 0.1}, "paused", 3),
        TrialView(1, {}, {3: 0.3, 51: 0.2}, "finished", 51),
        TrialView(2, {}, {3: 0.05, 9: 0.4}, "paused", 9),
    ]
    state = State(trials, 1.0, total([]), None, 0.0, 1.0)
    assert state.best is trials[1]
    assert "best eval/loss 0.2000 (trial 1)" in state_line(state, "eval/loss")
    early = State([trials[0], trials[2]], 1.0, total([]), None, 0.0, 1.0)
    assert early.best is trials[0], "each at the place it has come to"


class Killed(BaseException):
    """The driver's process is gone."""


def test_the_runs_of_a_driver_that_died_between_making_and_noting_them_are_found_again(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    experiment = check_store(uri, "lowland")
    parent = TrackedRun.start(uri, experiment, "study").run_id

    def runs() -> TrialRuns:
        return TrialRuns(BoundSpace(setting.space, setting.recipe), uri, experiment, parent, 51)

    def begin(held: TrialRuns, number: int) -> Any:
        return held.begin(Segment(number, 0, 3), {LR: 1e-3}, None)

    def dies(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", dies)  # the MLflow run is there, its id is not written down
        with pytest.raises(Killed):
            begin(runs(), 0)
    (made,) = find_runs(uri, experiment, "mlflow.parentRunId", parent)
    (tmp_path / "runs" / setting.name / "trial-0000" / "run.json.here.1.2.tmp").write_text("{")
    again = runs()
    job = begin(again, 0)
    assert job.task["run_id"] == made.info.run_id
    with monkeypatch.context() as patch:
        patch.setattr(TrackedRun, "log_recipe", dies)  # which is done while workers begin
        assert begin(again, 1).task["run_id"] != made.info.run_id
        with pytest.raises(Killed):
            again.ended(1, Outcome("reached"), "paused")
    later = runs()  # that driver died as well, with trial 0 decided on and trial 1 under way
    later.settle(0, Outcome("reached"), "paused")
    later.settle(0, Outcome("reached"), "finished")
    later.settle(7, Outcome("reached"), "finished")
    states = {
        r.data.tags["lowland.trial"]: r.info.status for r in find_runs(uri, experiment, "mlflow.parentRunId", parent)
    }
    assert states == {"0": "SCHEDULED", "1": "RUNNING"}, "what was closed already stays as it was closed"
    later.settle(1, Outcome("diverged"), "failed")
    run = next(r for r in find_runs(uri, experiment, "lowland.trial", "1"))
    assert (run.info.status, run.data.tags["lowland.trial.end"]) == ("FAILED", "diverged")
    assert run.data.params["optimizer.lr"] == "0.001"
    assert connect(uri).get_run(made.info.run_id).data.params["optimizer.lr"] == "0.001"
