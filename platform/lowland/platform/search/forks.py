"""The first checkpoint of a trial that goes on from another one's."""

import os
import shutil
from pathlib import Path

from lowland.platform.runs import RunFolder
from lowland.trainers.checkpoints.store import MANIFEST, CheckpointStore
from lowland.trainers.errors import RunError


def newest_step(run: RunFolder) -> int | None:
    """The step of a run's newest checkpoint; None if it has none."""
    return next(reversed(_store(run).steps()), None)


def fork_checkpoint(parent: RunFolder, child: RunFolder) -> None:
    """Gives a run that has no checkpoint the newest one of another run, which may then remove its own.

    Files are linked, which takes no time and no space since checkpoints do not change; copied where the file system has
    no links.  The manifest comes last, as at any checkpoint.

    Args:
        parent: a run that does not train at the moment.
        child: a run without a whole checkpoint.

    Raises:
        RunError: the parent has none, or the files cannot be written.
    """
    source, target, step = _store(parent), _store(child), newest_step(parent)
    if step is None:
        raise RunError(f"{parent.uri} has no checkpoint that {child.uri} could go on from")
    try:
        target.begin(step)
        for file in sorted(Path(source.path(step)).iterdir(), key=lambda file: file.name == MANIFEST):
            _link(file, Path(target.path(step)) / file.name)
    except OSError as error:
        raise RunError(f"{target.path(step)}: a checkpoint cannot be copied there: {error}") from error


def _store(run: RunFolder) -> CheckpointStore:
    return CheckpointStore(f"{run.uri}/checkpoints")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # no links here, or too many
        shutil.copyfile(source, target)
