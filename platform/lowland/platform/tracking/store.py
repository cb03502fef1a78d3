"""Where MLflow keeps runs, and whether it can be used."""

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lowland.platform.recipe import TrackingConfig
from lowland.platform.runs import open_filesystem
from lowland.platform.urls import redact, whole
from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
PROBE_SECONDS = 5

ENVIRONMENT = {
    # MLflow's 7 retries with growing pauses hold the caller for four minutes when the server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # A report to MLflow's authors is nothing a training should wait for or fail on.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Its log lines (tables made, models logged) would break up the progress display.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""What mlflow reads when it is imported or used; values that the user has set stay."""


def connect(uri: str) -> "MlflowClient":
    """A client of the store; imports mlflow (about 2 s)."""
    prepare_environment()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def prepare_environment() -> None:
    """Sets `ENVIRONMENT`; call it before mlflow is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def resolve_uri(tracking: TrackingConfig, storage: str) -> str:
    """The tracking URI in force: the recipe's, else MLFLOW_TRACKING_URI, else SQLite in the storage folder.

    Relative SQLite paths become absolute, since workers may run in another folder.

    Raises:
        UserError: the URI is of a kind that MLflow or workers cannot use, its password is not known, or there is none
            and the storage is no local folder.
    """
    uri = tracking.uri or os.environ.get(VARIABLE)
    return _absolute(whole(uri, VARIABLE)) if uri else sqlite_uri(storage)


def sqlite_uri(storage: str) -> str:
    """The SQLite store in a storage folder.

    Raises:
        UserError: the storage is no local folder.
    """
    local = open_filesystem(storage)[2]
    if local is None:
        raise UserError(
            f"tracking.uri is not set, and SQLite cannot lie in {storage}; set tracking.uri (or MLFLOW_TRACKING_URI) "
            "to an MLflow server, or to sqlite:////a/local/path/mlflow.db"
        )
    return f"sqlite:///{local / DATABASE}"


def check_store(uri: str, experiment: str) -> str:
    """Makes sure, within seconds, that the store answers and takes writes; makes the experiment if need be.

    Returns:
        The experiment's id.

    Raises:
        UserError: the store cannot be reached or written, or the experiment was deleted.
    """
    shown = redact(uri)
    _probe(uri, shown)
    prepare_environment()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _writable_experiment(connect(uri), uri, experiment)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(f"the tracking store {shown} cannot be used: {first_line(error)}") from error


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _absolute(uri: str) -> str:
    path = sqlite_path(uri)
    if path is not None:
        return f"sqlite:///{path.expanduser().absolute()}"
    if "://" not in uri and uri != "databricks":
        raise UserError(
            f"tracking.uri {uri!r} is a folder; MLflow no longer writes to folders: use "
            f"sqlite:///{Path(uri).expanduser().absolute() / DATABASE} or the URL of an MLflow server"
        )
    if uri.startswith("file:"):
        raise UserError(f"tracking.uri {uri!r}: MLflow no longer writes to folders; use sqlite:////path/{DATABASE}")
    return uri


def _probe(uri: str, shown: str) -> None:
    """A quick look before mlflow's own client, which retries for minutes before it reports."""
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        _probe_server(uri, shown)
    elif path := sqlite_path(uri):
        _probe_file(path)
    elif scheme.partition("+")[0] in ("postgresql", "mysql"):
        _probe_database(uri, shown)


def _probe_server(uri: str, shown: str) -> None:
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS)
    except requests.RequestException as error:
        reason = "no answer" if isinstance(error, requests.Timeout) else "no connection"
        raise UserError(
            f"the tracking server {shown} cannot be reached ({reason}); start it, or correct tracking.uri or "
            "MLFLOW_TRACKING_URI"
        ) from error
    if answer.status_code == requests.codes.forbidden:
        host = urlsplit(uri).netloc.rpartition("@")[2]
        raise UserError(
            f"the tracking server {shown} refuses this host name (403); start it with --allowed-hosts '{host}'"
        )


def _probe_file(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise UserError(f"the tracking store {path} cannot be written: {error.strerror}") from error


def _probe_database(uri: str, shown: str) -> None:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": PROBE_SECONDS})
        engine.connect().close()
        engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise UserError(f"the tracking store {shown} cannot be reached: {first_line(error)}") from error


def _writable_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=_artifact_location(uri)))
    if found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment {name!r} was deleted in {redact(uri)}; restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or choose another name"
        )
    client.set_experiment_tag(found.experiment_id, "lowland", "true")  # shows that the store takes writes
    return str(found.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """Beside an SQLite store; a server decides for itself, and its answer differs from what this machine sees."""
    path = sqlite_path(uri)
    return (path.parent / ARTIFACTS).as_uri() if path else None


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error's message, cut to a length that fits a report."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= most else f"{line[:most]}..."
