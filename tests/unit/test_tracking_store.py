"""Which store a run uses, and what is said when it cannot be used."""

import http.server
import os
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
from rich.console import Console

from lowland.platform.recipe import TrackingConfig
from lowland.platform.tracking.store import check_store, connect, resolve_uri
from lowland.platform.tracking.ui import find_store, free_port, open_ui
from lowland.platform.urls import redact
from lowland.trainers.errors import UserError


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_recipe_wins_over_the_environment_over_sqlite_in_the_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = TrackingConfig(uri="http://recipe:5000")
    assert resolve_uri(TrackingConfig(), "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert resolve_uri(TrackingConfig(), "runs") == "http://environment:5000"
    assert resolve_uri(named, "runs") == "http://recipe:5000"


def test_relative_databases_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(TrackingConfig(uri="sqlite:///x/m.db"), "runs") == f"sqlite:///{tmp_path}/x/m.db"
    assert resolve_uri(TrackingConfig(uri="sqlite:////x/m.db"), "runs") == "sqlite:////x/m.db"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns"])
def test_folders_are_refused_with_what_to_use_instead(uri):
    with pytest.raises(UserError, match=r"no longer writes to folders.*sqlite:///"):
        resolve_uri(TrackingConfig(uri=uri), "runs")


def test_a_remote_storage_needs_a_tracking_uri():
    from pyarrow import fs

    bucket = "mock://bucket/runs"
    assert fs.FileSystem.from_uri(bucket)
    with pytest.raises(UserError, match=r"set tracking\.uri"):
        resolve_uri(TrackingConfig(), bucket)
    assert resolve_uri(TrackingConfig(uri="http://a:1"), bucket) == "http://a:1"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("https://me:s%40cret@host/path", "https://me:***@host/path"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_passwords_are_never_shown(uri, shown):
    assert redact(uri) == shown


def test_an_sqlite_store_is_made_with_artifacts_beside_it_and_checked_again(tmp_path):
    uri = f"sqlite:///{tmp_path}/new folder/mlflow.db"
    experiment = check_store(uri, "text")
    assert check_store(uri, "text") == experiment
    location = connect(uri).get_experiment(experiment).artifact_location
    assert location == f"file://{tmp_path}/new%20folder/mlartifacts"
    connect(uri).delete_experiment(experiment)
    with pytest.raises(UserError, match=rf"restore.*--experiment-id {experiment}"):
        check_store(uri, "text")


def test_a_file_that_is_no_database_is_the_users_mistake(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_text("this is no database" * 100)
    with pytest.raises(UserError, match=r"mlflow\.db cannot be used"):
        check_store(f"sqlite:///{path}", "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_write_permission_is_the_users_mistake(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        check_store(f"sqlite:///{tmp_path}/mlflow.db", "text")


def test_a_path_through_a_file_is_the_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        check_store(f"sqlite:///{tmp_path}/file/mlflow.db", "text")


def test_a_server_that_is_not_there_is_told_within_seconds():
    start = time.monotonic()
    with pytest.raises(UserError, match="no connection"):
        check_store(f"http://127.0.0.1:{free_port(41000)}", "text")
    assert time.monotonic() - start < 60, "MLflow by itself tries for minutes"


@contextmanager
def server_that_answers(status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_server_that_refuses_our_name_for_it_is_told_how_to_allow_it():
    with server_that_answers(403) as port, pytest.raises(UserError, match=rf"--allowed-hosts '127.0.0.1:{port}'"):
        check_store(f"http://user:secret@127.0.0.1:{port}", "text")


def test_a_server_that_is_not_mlflow_is_the_users_mistake():
    with server_that_answers(404) as port, pytest.raises(UserError, match="cannot be used"):
        check_store(f"http://127.0.0.1:{port}", "text")


def test_the_ui_shows_the_storage_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs/mlflow\.db.*--storage"):
        find_store(None)
    for folder in ("runs", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mlflow.db").touch()
    assert find_store(None) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert find_store(None) == "http://server:5000"
    assert find_store("other") == f"sqlite:///{tmp_path}/other/mlflow.db"
    shutil.rmtree("other")
    with pytest.raises(UserError, match="no MLflow store"):
        find_store("other")


def test_the_ui_makes_no_store(tmp_path):
    with pytest.raises(UserError, match="no MLflow store"):
        open_ui(f"sqlite:///{tmp_path}/mlflow.db", 5000, Console())
    assert list(tmp_path.iterdir()) == []
