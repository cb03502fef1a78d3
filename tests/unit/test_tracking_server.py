"""With a real `mlflow server`: one that dies and comes back, and the UI."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest

from lowland.platform.runs import RunFolder
from lowland.platform.tracking import writer as writer_module
from lowland.platform.tracking.delivery import deliver_spools
from lowland.platform.tracking.points import spools
from lowland.platform.tracking.store import check_store, connect
from lowland.platform.tracking.ui import free_port, serve, terminate_as_interrupt
from lowland.platform.tracking.writer import MetricWriter

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    check_store(uri, "text")
    return uri


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.open(str(tmp_path), "run")
    folder.create()
    return folder


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def log(writer, steps):
    for step in steps:
        writer.log(step, {"loss": float(step), "not_finite": math.inf})


def test_a_server_that_comes_late_and_dies_early_holds_every_point_once(database, folder, monkeypatch):
    monkeypatch.setattr(writer_module, "LONGEST_PAUSE", 0.5)
    port = free_port(42000)
    server = f"http://127.0.0.1:{port}"
    direct = connect(database)  # reads what the server stored, whether or not it lives
    run_id = direct.create_run(direct.get_experiment_by_name("text").experiment_id).info.run_id

    def steps():
        return [metric.step for metric in direct.get_metric_history(run_id, "loss")]

    writer = MetricWriter(server, run_id, folder, "rank0", flush_seconds=0.1)
    log(writer, range(1500))
    wait_for(lambda: spools(folder) == ["rank0"])
    with serve(database, port) as process:
        assert check_store(server, "text") == direct.get_experiment_by_name("text").experiment_id
        wait_for(lambda: len(steps()) == 1500)
        wait_for(lambda: spools(folder) == [])
        os.killpg(process.pid, signal.SIGKILL)
    log(writer, range(1500, 2000))
    assert writer.close() == 1000  # two metrics
    assert deliver_spools(folder, database, run_id) == 1000
    assert steps() == list(range(2000))
    values = [metric.value for metric in direct.get_metric_history(run_id, "not_finite")]
    assert len(values) == 2000
    assert all(math.isnan(value) for value in values)


OPEN_UI = """
import sys
from rich.console import Console
from lowland.platform.tracking.ui import open_ui
open_ui(sys.argv[1], int(sys.argv[2]), Console())
"""


def test_the_ui_takes_a_free_port_and_ends_with_ctrl_c(database):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1]
        command = [sys.executable, "-c", OPEN_UI, database, str(wanted)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == f"Port {wanted} is in use.\n"
        assert lines[1] == f"MLflow UI on {database}\n"
        url = lines[2].split()[0]
        assert url != f"http://127.0.0.1:{wanted}"
        with urlopen(url, timeout=60) as page:
            assert b"MLflow" in page.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert errors == ""
    with pytest.raises(OSError):
        urlopen(url, timeout=2)


def test_sigterm_does_what_ctrl_c_does_and_only_inside_the_block():
    before = signal.getsignal(signal.SIGTERM)

    def receive():
        with terminate_as_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        receive()
    assert signal.getsignal(signal.SIGTERM) is before
