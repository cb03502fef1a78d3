"""Metric points, and the file in the run folder that keeps those which the store has not taken yet."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lowland.platform.runs import RunFolder

log = logging.getLogger(__name__)

SPOOLS = ("logs", "undelivered")
FILES = (*SPOOLS, "files")


@dataclass(frozen=True, slots=True)
class Point:
    """A value of a metric at a step."""

    key: str
    step: int
    value: float
    timestamp: int
    """Milliseconds since 1970, when it was recorded; kept over retries, so that a repeat is an exact repeat."""


def points(step: int, values: Mapping[str, float], seconds: float) -> list[Point]:
    """The points of one step, recorded at `seconds` since 1970.

    Infinities become NaN: MLflow stores them as 1.8e308, which flattens the rest of the curve.
    """
    timestamp = int(seconds * 1000)
    return [
        Point(key, step, float(value) if math.isfinite(value) else math.nan, timestamp) for key, value in values.items()
    ]


class Spool:
    """The undelivered points of one writer, as JSON lines in the run folder."""

    def __init__(self, folder: RunFolder, writer: str) -> None:
        self._folder = folder
        self._parts = (*SPOOLS, f"{writer}.jsonl")

    def load(self) -> list[Point]:
        """The points that an earlier process left; none if there is no file."""
        try:
            lines = self._folder.read_bytes(*self._parts).decode().splitlines()
        except FileNotFoundError:
            return []
        return [point for line in lines if (point := _parse(line)) is not None]

    def save(self, undelivered: Iterable[Point]) -> None:
        """Replaces the file."""
        text = "".join(_format(point) + "\n" for point in undelivered)
        self._folder.filesystem.create_dir(self._folder.file(*SPOOLS), recursive=True)
        self._folder.write_bytes(text.encode(), *self._parts)

    def clear(self) -> None:
        """Removes the file."""
        try:
            self._folder.filesystem.delete_file(self._folder.file(*self._parts))
        except FileNotFoundError:
            return


class FileSpool:
    """The undelivered files of a run, as files in the run folder."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def save(self, name: str, content: bytes) -> None:
        """Keeps a file under its relative path."""
        parent = "/".join((*FILES, name)).rpartition("/")[0]
        self._folder.filesystem.create_dir(self._folder.file(parent), recursive=True)
        self._folder.write_bytes(content, *FILES, name)

    def load(self) -> list[tuple[str, bytes]]:
        """The files that an earlier process left, by name."""
        from pyarrow.fs import FileSelector, FileType

        root = self._folder.file(*FILES)
        found = self._folder.filesystem.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
        names = [info.path.removeprefix(f"{root}/") for info in found if info.type == FileType.File]
        return [(name, self._folder.read_bytes(*FILES, name)) for name in sorted(names)]

    def clear(self, name: str) -> None:
        """Removes a file."""
        self._folder.filesystem.delete_file(self._folder.file(*FILES, name))


def spools(folder: RunFolder) -> list[str]:
    """The writers that left undelivered points."""
    from pyarrow.fs import FileSelector

    found = folder.filesystem.get_file_info(FileSelector(folder.file(*SPOOLS), allow_not_found=True))
    return sorted(info.base_name.removesuffix(".jsonl") for info in found if info.extension == "jsonl")


def _format(point: Point) -> str:
    value = None if math.isnan(point.value) else point.value  # JSON has no NaN
    return json.dumps({"key": point.key, "step": point.step, "value": value, "timestamp": point.timestamp})


def _parse(line: str) -> Point | None:
    try:
        fields = json.loads(line)
        value = math.nan if fields["value"] is None else float(fields["value"])
        return Point(str(fields["key"]), int(fields["step"]), value, int(fields["timestamp"]))
    except (ValueError, KeyError, TypeError):
        log.warning("a line of undelivered metrics cannot be read and is left out: %.100s", line)
        return None
