"""Metrics arrive exactly once, whatever happens to the store or to the process."""

import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowland.platform.runs import Driver, RunFolder, RunRecord
from lowland.platform.tracking import delivery as delivery_module
from lowland.platform.tracking import writer as writer_module
from lowland.platform.tracking.delivery import Delivery, deliver_left, deliver_spools
from lowland.platform.tracking.points import FileSpool, Point, Spool, points, spools
from lowland.platform.tracking.store import check_store, connect
from lowland.platform.tracking.writer import MetricWriter


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    check_store(f"sqlite:///{path}", "test")
    return path


@pytest.fixture
def store(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")  # making the tables takes seconds, copying them none
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def run_id(store):
    client = connect(store)
    return client.create_run(client.get_experiment_by_name("test").experiment_id).info.run_id


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.open(str(tmp_path), "run")
    folder.create()
    return folder


class Store:
    """Stands for a connection; refuses everything while `away`."""

    def __init__(self):
        self.away = False
        self.held = []
        self.requests = []
        self.lose_answer = False

    def connect(self, uri, run_id):
        if self.away:
            raise ConnectionError("no route")
        known = {(point.key, point.step) for point in self.held}
        return StoreConnection(self, known)


class StoreConnection:
    def __init__(self, store, known):
        self.store = store
        self.known = known

    def send(self, batch):
        if self.store.away:
            raise ConnectionError("no route")
        self.store.requests.append(len(batch))
        self.store.held += [point for point in batch if (point.key, point.step) not in self.known]
        if self.store.lose_answer:
            self.store.lose_answer = False
            raise TimeoutError("no answer")


@pytest.fixture
def fake(monkeypatch):
    store = Store()
    monkeypatch.setattr(writer_module, "Delivery", store.connect)
    monkeypatch.setattr(delivery_module, "Delivery", store.connect)
    return store


def make(folder, flush_seconds=0.01, name="rank0"):
    return MetricWriter("unused", "unused", folder, name, flush_seconds)


def history(store, run_id, key):
    return [(metric.step, metric.value) for metric in connect(store).get_metric_history(run_id, key)]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def test_metrics_reach_a_real_store_in_one_request(store, run_id, folder, monkeypatch):
    sent = []
    send = Delivery.send
    monkeypatch.setattr(Delivery, "send", lambda self, batch: (sent.append(len(batch)), send(self, batch)))
    writer = MetricWriter(store, run_id, folder, "rank0", flush_seconds=60)
    for step in range(100):
        writer.log(step, {"loss": float(step), "lr": 0.1})
    assert writer.close(30) == 0
    assert history(store, run_id, "loss") == [(step, float(step)) for step in range(100)]
    assert len(history(store, run_id, "lr")) == 100
    assert sum(sent) == 200
    assert len(sent) <= 2
    assert spools(folder) == []


def away(uri, run_id):
    raise ConnectionError("no route")


def artifact(store, run_id, name, folder):
    return Path(connect(store).download_artifacts(run_id, name, str(folder))).read_bytes()


def test_files_reach_a_real_store(store, run_id, folder, tmp_path):
    writer = MetricWriter(store, run_id, folder, "rank0")
    writer.file("pictures/a.png", b"first")
    writer.file("pictures/a.png", b"second")
    assert writer.close(30) == 0
    assert artifact(store, run_id, "pictures/a.png", tmp_path) == b"second"
    assert deliver_spools(folder, store, run_id) == 0


def test_files_that_the_store_did_not_take_stay_in_the_run_folder_and_are_delivered_later(
    store, run_id, folder, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "Delivery", away)
        writer = MetricWriter(store, run_id, folder, "rank0")
        writer.file("pictures/a.png", b"picture")
        assert writer.close(10) == 1
    deliver_spools(folder, store, run_id)
    assert artifact(store, run_id, "pictures/a.png", tmp_path) == b"picture"
    assert not FileSpool(folder).load()


@pytest.mark.parametrize("earlier", [True, False], ids=["of an earlier attempt", "its own"])
def test_a_delivered_file_leaves_no_older_copy_that_would_replace_it(folder, fake, monkeypatch, earlier):
    sent = []
    monkeypatch.setattr(StoreConnection, "send_file", lambda self, *file: sent.append(file), raising=False)
    fake.away = True
    writer = make(folder)
    writer.file("a.txt", b"old")
    assert writer.close(0.5) == 1
    assert FileSpool(folder).load() == [("a.txt", b"old")]
    fake.away = False
    if earlier:
        writer = make(folder)
        writer.file("a.txt", b"new")
        assert writer.close() == 0
    else:
        assert writer._flush()
    assert deliver_spools(folder, "unused", "unused") == 0
    assert sent == [("a.txt", b"new" if earlier else b"old")]


def test_a_resumed_run_repeats_steps_without_repeating_points(store, run_id, folder):
    first = MetricWriter(store, run_id, folder, "rank0")
    for step in range(10):
        first.log(step, {"loss": float(step)})
    first.close(30)
    second = MetricWriter(store, run_id, folder, "rank0")
    for step in range(5, 15):
        second.log(step, {"loss": float(step), "new": 1.0})
    assert second.close(30) == 0
    assert history(store, run_id, "loss") == [(step, float(step)) for step in range(15)]
    assert [step for step, _ in history(store, run_id, "new")] == list(range(5, 15))


def test_values_that_are_not_finite_are_recorded_as_nan(store, run_id, folder):
    writer = MetricWriter(store, run_id, folder, "rank0")
    for step, value in enumerate([math.nan, math.inf, -math.inf, 1.0]):
        writer.log(step, {"loss": value})
    assert writer.close(30) == 0
    assert [math.isnan(value) for _, value in history(store, run_id, "loss")] == [True, True, True, False]


def test_one_invalid_metric_does_not_hold_up_the_others(store, run_id, folder, caplog):
    writer = MetricWriter(store, run_id, folder, "rank0")
    for step in range(20):
        writer.log(step, {"loss": 1.0, "lr": 2.0} | ({"bad*key": 3.0} if step == 7 else {}))
    assert writer.close(30) == 0
    assert len(history(store, run_id, "loss")) == len(history(store, run_id, "lr")) == 20
    assert "bad*key" in caplog.text


def test_a_store_without_the_run_never_raises_into_training(store, folder):
    writer = MetricWriter(store, "0" * 32, folder, "rank0")
    writer.log(1, {"loss": 1.0})
    assert writer.close(30) == 1
    assert [point.step for point in Spool(folder, "rank0").load()] == [1]


def test_nothing_is_imported_or_started_before_the_first_metric(folder, fake):
    before = threading.active_count()
    writer = make(folder)
    assert threading.active_count() == before
    assert writer.close() == 0
    assert spools(folder) == []


def test_what_is_undelivered_at_the_end_comes_with_the_next_attempt(folder, fake):
    fake.away = True
    first = make(folder)
    for step in range(3):
        first.log(step, {"loss": float(step)})
    assert first.close(0.5) == 3
    assert spools(folder) == ["rank0"]
    fake.away = False
    second = make(folder)
    second.log(2, {"loss": 9.0})  # a repeated step: the point recorded first is the one that counts
    second.log(3, {"loss": 3.0})
    assert second.close() == 0
    assert [(point.step, point.value) for point in fake.held][:3] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert spools(folder) == []


def test_points_left_by_any_writer_are_delivered_once_from_outside(store, run_id, folder):
    Delivery(store, run_id).send(points(0, {"loss": 0.0}, 1.0))
    Spool(folder, "rank0").save(points(0, {"loss": 0.0}, 2.0) + points(1, {"loss": math.nan}, 2.0))
    Spool(folder, "node-b").save(points(5, {"system/b/cpu": 50.0}, 2.0))
    assert deliver_spools(folder, store, run_id) == 3
    assert deliver_spools(folder, store, run_id) == 0
    assert [step for step, _ in history(store, run_id, "loss")] == [0, 1]
    assert history(store, run_id, "system/b/cpu") == [(5, 50.0)]


def test_only_ended_runs_of_the_same_store_are_delivered_from_outside(store, run_id, tmp_path):
    driver = Driver.current()
    leads = {
        "ended": {"status": "failed"},
        "killed": {"status": "running", "driver": driver.model_copy(update={"started": 1.0})},
        "alive": {"status": "running", "driver": driver},
        "elsewhere": {"status": "running", "driver": driver.model_copy(update={"host": "another"})},
        "other-store": {"status": "failed", "tracking_uri": "sqlite:////another.db"},
        "untracked": {"status": "failed", "mlflow_run_id": None},
    }
    for name, changes in leads.items():
        folder = RunFolder.open(str(tmp_path), name)
        folder.create()
        folder.write(RunRecord.new(name, {}).with_(**{"tracking_uri": store, "mlflow_run_id": run_id} | changes))
        Spool(folder, "rank0").save(points(1, {name: 1.0}, 1.0))
    assert deliver_left(str(tmp_path), store) == 2
    assert set(connect(store).get_run(run_id).data.metrics) == {"ended", "killed"}
    assert deliver_left(str(tmp_path), store) == 0


def test_a_store_that_comes_back_gets_everything_and_is_logged_once(folder, fake, monkeypatch, caplog):
    monkeypatch.setattr(writer_module, "LONGEST_PAUSE", 0.02)
    fake.away = True
    writer = make(folder)
    writer.log(0, {"loss": 0.0})
    wait_for(lambda: spools(folder) == ["rank0"])
    for step in range(1, 2500):
        writer.log(step, {"loss": 0.0})
    fake.away = False
    wait_for(lambda: len(fake.held) == 2500)
    wait_for(lambda: spools(folder) == [])
    assert writer.close() == 0
    assert [point.step for point in fake.held] == list(range(2500))
    assert max(fake.requests) <= 1000
    assert caplog.text.count("is away") == 1


def test_an_answer_that_is_lost_does_not_double_the_points(folder, fake, monkeypatch):
    monkeypatch.setattr(writer_module, "LONGEST_PAUSE", 0.02)
    fake.lose_answer = True
    writer = make(folder)
    writer.log(0, {"a": 1.0, "b": 2.0})
    wait_for(lambda: len(fake.requests) == 2)
    assert writer.close() == 0
    assert [(point.key, point.step) for point in fake.held] == [("a", 0), ("b", 0)]


def test_a_store_that_hangs_holds_up_neither_log_nor_close(folder, monkeypatch):
    entered, release, left = threading.Event(), threading.Event(), threading.Event()

    def hang(uri, run_id):
        entered.set()
        release.wait(300)
        left.set()

    monkeypatch.setattr(writer_module, "Delivery", hang)
    writer = make(folder)
    writer.log(0, {"loss": 0.0})
    assert entered.wait(60)
    for step in range(1, 1000):
        writer.log(step, {"loss": 0.0})
    assert writer.close(0.1) == 1000
    assert not left.is_set(), "the store hangs still"
    assert len(Spool(folder, "rank0").load()) == 1000
    release.set()
    writer._thread.join(10)  # or it would go on in the tests that follow


KILLED_AFTER_CHECKPOINT = """
import os, signal, sys
from lowland.platform.runs import Driver, RunFolder, RunRecord
from lowland.platform.tracking.writer import MetricWriter

folder = RunFolder.open(sys.argv[1], "run")
writer = MetricWriter("http://127.0.0.1:9", "0" * 32, folder, "rank0")
writer.log(1, {"loss": 1.0})
writer.persist()
writer.log(2, {"loss": 2.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_metrics_before_a_checkpoint_survive_a_kill_after_it(folder, fake):
    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_CHECKPOINT, str(folder.local.parent)], check=False)
    assert killed.returncode == -signal.SIGKILL
    next_attempt = make(folder)
    next_attempt.log(2, {"loss": 2.0})
    assert next_attempt.close() == 0
    assert [point.step for point in fake.held] == [1, 2]


def test_a_run_folder_that_cannot_be_written_never_raises_into_training(folder, fake, caplog):
    fake.away = True
    shutil.rmtree(folder.local)
    folder.local.write_text("not a folder")
    writer = make(folder)
    writer.log(1, {"loss": 1.0})
    writer.persist()
    assert writer.close(0.5) == 1
    assert "could not be written" in caplog.text


def test_unreadable_lines_are_left_out_and_told(folder, caplog):
    spool = Spool(folder, "rank0")
    spool.save(points(1, {"a": 1.0}, 0.0))
    path = folder.local / "logs/undelivered/rank0.jsonl"
    path.write_text(path.read_text() + '{"key": "a", "st\n')
    assert [point.step for point in spool.load()] == [1]
    assert "cannot be read" in caplog.text


VALUES = st.floats(allow_infinity=False)
KEYS = st.text(min_size=1, max_size=20)


@given(st.lists(st.builds(Point, KEYS, st.integers(0, 2**40), VALUES, st.integers(0, 2**45)), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_spooled_points_come_back_as_they_were(folder, saved):
    spool = Spool(folder, "rank0")
    spool.save(saved)
    text = (folder.local / "logs/undelivered/rank0.jsonl").read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON: no NaN
    assert repr(spool.load()) == repr(saved)  # repr, because NaN is not equal to itself
