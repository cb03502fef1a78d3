"""Where the trials of a search lie: a journal file, or a database that SQLAlchemy knows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.platform.search.setting import JOURNAL, Setting
from lowland.platform.tracking.store import first_line
from lowland.platform.urls import redact, whole, without_secrets
from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

DATABASE = "LOWLAND_DATABASE"
"""Environment variable with the URL of the database; it may hold the password, which files do not."""
CONNECT_SECONDS, BUSY_SECONDS = 10, 60
SQLITE = "sqlite:///"


def database_of(text: str) -> str:
    """What `--database` says: a URL, of SQLite with an absolute path; or the absolute path of a journal file.

    Raises:
        UserError: it names a folder, or a database that ends with its process.
    """
    if text.startswith(SQLITE) and text != SQLITE:
        return SQLITE + str(Path(text.removeprefix(SQLITE)).expanduser().absolute())
    if text.startswith("sqlite:") or not text:
        raise UserError(f"--database {text}: give its file, as {SQLITE}trials.db; a database in memory would be lost")
    if "://" in text:
        return text
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        raise UserError(f"--database {text}: a folder; give a URL, or the file of a journal, as {text}/{JOURNAL}")
    return str(path)


def location(setting: Setting) -> str:
    """Where the trials lie, to be shown; optuna-dashboard opens it."""
    return redact(setting.database) if setting.database else str(setting.folder / JOURNAL)


def begun(setting: Setting) -> bool:
    """Whether there is a storage to be read: looking at a study makes no files."""
    place = setting.database or str(setting.folder / JOURNAL)
    file = place.removeprefix(SQLITE).partition("?")[0]
    return "://" in file or Path(file).is_file()


def open_storage(setting: Setting) -> "BaseStorage":
    """The storage of a search; made if need be.

    Raises:
        UserError: it cannot be opened, or its password is not known.
    """
    return storage_at(whole(setting.database, DATABASE) if setting.database else str(setting.folder / JOURNAL))


def storage_at(place: str) -> "BaseStorage":
    """The storage at a URL or in a journal file.

    Raises:
        UserError: it cannot be opened; the message holds no password.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if "://" not in place:
        return _journal(Path(place))
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if place.startswith(SQLITE):
            Path(place.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.get_storage(optuna.storages.RDBStorage(place, _engine(place)))
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, ImportError) and error.__cause__ else error
        reason = without_secrets(first_line(cause), place)
        raise UserError(f"the database {redact(place)} cannot be used: {reason}") from None


def _journal(path: Path) -> "BaseStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the journal {path} cannot be used: {first_line(error)}") from error


def _engine(place: str) -> dict[str, Any]:
    """SQLite waits while another process writes; servers drop connections that were idle, and may not answer."""
    if place.startswith(SQLITE):
        return {"connect_args": {"timeout": BUSY_SECONDS}}
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_SECONDS}}
