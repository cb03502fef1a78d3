"""Preparing one work unit in a plain process: read, tokenise, pack, write its shards."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lowland.trainers.data.documents import BadRowError, Document, DocumentMaker, Reason
from lowland.trainers.data.manifest import SplitInfo, SplitName
from lowland.trainers.data.packing import packer_for
from lowland.trainers.data.plan import Plan
from lowland.trainers.data.readers import read_rows
from lowland.trainers.data.shards import Row, ShardWriter, token_dtype
from lowland.trainers.data.tokenizers import TextTokenizer, load_tokenizer
from lowland.trainers.data.units import Part, Unit
from lowland.trainers.errors import DataError

BAD_ROWS_FILE = "bad_rows.jsonl"


@dataclass(frozen=True)
class Hashes:
    """The range of some documents' hashes, each in [0, 2^64)."""

    lowest: int
    highest: int

    def and_(self, other: "Hashes | None") -> "Hashes":
        """The range of these and others."""
        if other is None:
            return self
        return Hashes(min(self.lowest, other.lowest), max(self.highest, other.highest))


@dataclass
class UnitResult:
    """What became of a unit; small, whatever the unit's size."""

    index: int
    folder: Path
    """Holds the unit's shards and its bad rows."""
    splits: dict[SplitName, SplitInfo] = field(default_factory=dict)
    documents_by_source: Counter[int] = field(default_factory=Counter)
    document_lengths: Counter[int] = field(default_factory=Counter)
    bad_rows: Counter[Reason] = field(default_factory=Counter)
    rows_of_parts: list[int] = field(default_factory=list)
    """Rows (lines, for JSON lines) of each part, to number those of the next part of the same file."""
    hashes: Hashes | None = None
    """Of the documents that are split by hash; None if there are none."""


def prepare_unit(plan: Plan, unit: Unit, folder: Path) -> UnitResult:
    """Writes the shards of a unit and `bad_rows.jsonl` into a new folder below `folder`.

    The result is a function of plan and unit alone.  With `strict` it ends at the first bad row.

    Raises:
        DataError: a file cannot be read, or the tokenizer is not the plan's.
    """
    place = folder / f"unit-{unit.index:05d}"
    shutil.rmtree(place, ignore_errors=True)  # a task whose worker died is tried again
    try:
        place.mkdir()
    except FileNotFoundError:
        raise DataError(
            f"{folder.parent} is not there on every node; --out must be on storage that all share"
        ) from None
    with ExitStack() as stack:
        job = _Job(plan, unit, place, stack)
        for i, part in enumerate(unit.parts):
            if not job.prepare_part(i, part):
                break
        job.finish()
    return job.result


class _SplitWriter:
    """Packs the documents of one split of a unit and counts them."""

    def __init__(self, plan: Plan, folder: Path, name: SplitName, stack: ExitStack) -> None:
        info, length = plan.tokenizer, plan.settings.sequence_length
        self._packer = packer_for(plan.packing, length)
        self._writer = stack.enter_context(
            ShardWriter(folder, name, sequence_length=length, dtype=token_dtype(info.vocab_size), pad_id=info.pad_id)
        )
        self._counts: Counter[str] = Counter()

    def add(self, document: Document) -> None:
        self._write(self._packer.add(document))
        self._counts["documents"] += 1

    def finish(self) -> SplitInfo:
        self._write(self._packer.finish())
        self._writer.close()
        return SplitInfo(**self._counts, shards=tuple(self._writer.shards))

    def _write(self, rows: Iterator[Row]) -> None:
        for row in rows:
            self._writer.write(row)
            self._counts.update(rows=1, tokens=len(row), targets=row.num_targets, bytes=row.num_bytes)


class _Job:
    def __init__(self, plan: Plan, unit: Unit, place: Path, stack: ExitStack) -> None:
        self.result = UnitResult(unit.index, place)
        self._plan, self._unit = plan, unit
        self._maker = DocumentMaker(_tokenizer(plan), plan.content, plan.text_column)
        self._seed = plan.settings.seed.to_bytes(8, "little")
        self._writers: dict[SplitName, _SplitWriter] = {
            name: _SplitWriter(plan, place, name, stack) for name in ("train", "held_out")
        }
        self._bad_rows = stack.enter_context((place / BAD_ROWS_FILE).open("w", encoding="utf-8"))

    def prepare_part(self, index: int, part: Part) -> bool:
        """Prepares the rows of a part; False if a bad row ended it."""
        count = 0
        for count, row in enumerate(read_rows(part, self._plan.columns), start=1):
            try:
                if isinstance(row, BadRowError):
                    raise row
                if row is not None:
                    self._add(part, row)
            except BadRowError as bad:
                self._note(index, count, bad)
                if self._plan.settings.strict:
                    return False
        self.result.rows_of_parts.append(count)
        return True

    def finish(self) -> None:
        self.result.splits = {name: writer.finish() for name, writer in self._writers.items()}

    def _add(self, part: Part, row: Mapping[str, Any]) -> None:
        document = self._maker.make(row)
        self._writers[self._unit.split or self._split_of(row)].add(document)
        self.result.documents_by_source[part.source] += 1
        self.result.document_lengths[1 << (len(document) - 1).bit_length()] += 1

    def _split_of(self, row: Mapping[str, Any]) -> SplitName:
        """By a hash of the content, so that a document that occurs twice is never in both splits."""
        content = json.dumps([row[name] for name in self._plan.columns], sort_keys=True, default=repr).encode()
        number = int.from_bytes(hashlib.blake2b(content, digest_size=8, key=self._seed).digest(), "little")
        self.result.hashes = Hashes(number, number).and_(self.result.hashes)
        return "held_out" if number < self._plan.held_out_below else "train"

    def _note(self, part: int, row: int, bad: BadRowError) -> None:
        self.result.bad_rows[bad.reason] += 1
        record = {"part": part, "row": row, "reason": bad.reason, "detail": bad.detail}
        self._bad_rows.write(json.dumps(record) + "\n")


def _tokenizer(plan: Plan) -> TextTokenizer:
    tokenizer = _loaded(plan.settings.tokenizer, plan.tokenizer.digest)
    if tokenizer.info.digest != plan.tokenizer.digest:
        raise DataError(f"tokenizer '{plan.settings.tokenizer}' is not the same on every node of the cluster")
    return tokenizer


@lru_cache(maxsize=1)
def _loaded(name: str, digest: str) -> TextTokenizer:
    """Worker processes prepare many units and a tokenizer takes seconds to load; another digest loads it again."""
    return load_tokenizer(name)
