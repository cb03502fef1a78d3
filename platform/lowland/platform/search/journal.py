"""What a process that died may leave of a journal: its lock, and the half of a record."""

from pathlib import Path

from optuna.storages.journal import JournalFileSymlinkLock
from optuna.storages.journal._file import LOCK_FILE_SUFFIX, get_lock_file

_BLOCK = 65536


def mend(journal: Path, *, alone: bool) -> None:
    """Makes a journal ready to be written.

    Optuna waits half a minute for a lock whose owner died, and appends to a half-written record, after which the
    journal cannot be read any more.  Nobody has acted on such a record: it is cut off.

    Args:
        journal: the file; it need not exist.
        alone: whether no other process can be writing to it.
    """
    if alone:
        journal.with_name(journal.name + LOCK_FILE_SUFFIX).unlink(missing_ok=True)
    if journal.is_file() and _whole(journal) < journal.stat().st_size:
        with get_lock_file(JournalFileSymlinkLock(str(journal))), journal.open("r+b") as file:
            file.truncate(_whole(journal))


def _whole(journal: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with journal.open("rb") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
    return 0
