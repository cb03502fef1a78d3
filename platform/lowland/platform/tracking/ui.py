"""The MLflow UI on the right store, for this machine alone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from rich.console import Console

from lowland.platform.tracking.delivery import deliver_left
from lowland.platform.tracking.store import first_line, prepare_environment, sqlite_path, sqlite_uri
from lowland.platform.urls import redact
from lowland.trainers.errors import RunError, UserError

HOST = "127.0.0.1"
START_SECONDS = 90
STOP_SECONDS = 10
PORTS_TRIED = 100


def find_store(storage: str | None) -> str:
    """The store to show: the one in `storage` if given, else MLFLOW_TRACKING_URI, else the one in `runs`.

    Raises:
        UserError: there is no such store yet.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = named if storage is None and named else sqlite_uri(storage or "runs")
    _require(uri)
    return uri


def _require(uri: str) -> None:
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise UserError(
            f"there is no MLflow store {path}; train first, or name the folder of your runs with --storage or the "
            "store with MLFLOW_TRACKING_URI"
        )


def open_ui(uri: str, port: int, console: Console) -> None:
    """Shows the store until Ctrl-C or SIGTERM.

    A server's URL is printed, since it brings its own UI; for a database `mlflow ui` is started.  Metrics that
    runs beside an SQLite store could not deliver are delivered first.

    Args:
        uri: MLflow tracking URI.
        port: port wanted on 127.0.0.1; the next free one is taken if it is in use.
        console: where the URL is printed.

    Raises:
        UserError: there is no such store.
        RunError: `mlflow ui` ended by itself or does not answer.
    """
    _require(uri)
    if urlsplit(uri).scheme in ("http", "https"):
        console.print(f"This store is a server with its own UI: {redact(uri)}", soft_wrap=True, highlight=False)
        return
    _deliver_left(uri, console)
    free = free_port(port)
    if free != port:
        console.print(f"Port {port} is in use.", highlight=False)
    with serve(uri, free) as process:
        console.print(f"MLflow UI on {redact(uri)}", soft_wrap=True, highlight=False)
        console.print(f"http://{HOST}:{free}  (Ctrl-C ends it)", soft_wrap=True, highlight=False)
        with suppress(KeyboardInterrupt):
            code = process.wait()
            raise RunError(f"mlflow ui ended by itself with code {code}")


@contextmanager
def serve(uri: str, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """Runs `mlflow ui` on a database store, from when it answers to the end of the block.

    Raises:
        RunError: it ended while starting, or does not answer within 90 s.
    """
    prepare_environment()
    # Its jobs (evaluation, scoring) are nothing a reader of runs needs, and cost a process of 230 MB.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    # In a session of its own, so that Ctrl-C reaches this process alone, which then ends all of the server's.
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with terminate_as_interrupt():
        try:
            _wait_until_up(process, port)
            yield process
        finally:
            _stop(process)


def free_port(wanted: int) -> int:
    """The first free port of 127.0.0.1 from `wanted` on.

    Raises:
        UserError: a hundred ports in a row are in use.
    """
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise UserError(f"no port from {wanted} on is free on {HOST}; choose another with --port")


def _deliver_left(uri: str, console: Console) -> None:
    path = sqlite_path(uri)
    if path is None:
        return
    try:
        delivered = deliver_left(str(path.parent), uri)
    except Exception as error:  # an old run folder that cannot be read is no reason not to show the others
        console.print(f"Some metrics could not be delivered: {first_line(error)}", highlight=False, markup=False)
        return
    if delivered:
        console.print(f"Delivered {delivered} metrics that ended runs had left.", highlight=False)


def _wait_until_up(process: "subprocess.Popen[bytes]", port: int) -> None:
    said: list[bytes] = []
    assert process.stderr is not None
    # Read all along: a server whose pipe is full stands still.
    threading.Thread(target=_keep_end, args=(process.stderr, said), daemon=True).start()
    deadline = time.monotonic() + START_SECONDS
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            state = "did not answer in time" if process.poll() is None else "ended while starting"
            text = b"".join(said).decode(errors="replace").strip()
            raise RunError(f"mlflow ui {state}:\n{text}")
        time.sleep(0.2)


def _keep_end(stream: "IO[bytes]", lines: list[bytes], most: int = 30) -> None:
    for line in stream:
        lines.append(line)
        del lines[:-most]


def _answers(port: int) -> bool:
    try:
        with urlopen(f"http://{HOST}:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal_)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM do what Ctrl-C does, so that it does not leave the server behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
