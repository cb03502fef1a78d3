"""Putting the results of units together, in their order, into a prepared folder that appears at once."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from lowland.trainers.data.manifest import FILE_NAME, Manifest, SourceInfo, SplitInfo, SplitName
from lowland.trainers.data.plan import Plan, Source
from lowland.trainers.data.shards import token_dtype
from lowland.trainers.data.unit import BAD_ROWS_FILE, Hashes, UnitResult
from lowland.trainers.data.units import Unit
from lowland.trainers.errors import DataError

EXAMPLES_PER_REASON = 3


@dataclass(frozen=True)
class BadRowRecord:
    """A row that was left out; `bad_rows.jsonl` holds one per line."""

    file: str
    row: int
    """From 1: a line of JSON lines, a row of Parquet and Arrow; 1 for a text file."""
    reason: str
    detail: str


@dataclass
class Prepared:
    """A finished preparation."""

    folder: Path
    manifest: Manifest
    examples: list[BadRowRecord] = field(default_factory=list)
    """The first few bad rows of each reason."""


class Assembly:
    """Collects unit results in a temporary folder beside `out`, and renames it to `out` at the end.

    Use as a context manager: what is not finished leaves nothing behind.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.absolute().parent / f".{out.name}.partial-{os.getpid()}"
        self._splits: dict[SplitName, SplitInfo] = {"train": SplitInfo(), "held_out": SplitInfo()}
        self._documents: Counter[int] = Counter()
        self._lengths: Counter[int] = Counter()
        self._bad: Counter[str] = Counter()
        self._rows_before: Counter[str] = Counter()
        self._examples: list[BadRowRecord] = []
        self._hashes: Hashes | None = None

    def __enter__(self) -> "Assembly":
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / BAD_ROWS_FILE).touch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, unit: Unit, result: UnitResult, *, strict: bool) -> None:
        """Takes the next unit's result; the caller keeps their order.

        Raises:
            DataError: `strict`, and the unit has a bad row.
        """
        self._add_bad_rows(unit, result, strict)
        for name, info in result.splits.items():
            self._splits[name] = self._merged(name, self._splits[name], info, result.folder)
        self._documents.update(result.documents_by_source)
        self._lengths.update(result.document_lengths)
        if result.hashes is not None:
            self._hashes = result.hashes.and_(self._hashes)
        shutil.rmtree(result.folder)

    def held_out_below(self, plan: Plan) -> int:
        """The plan's own bound, or one that holds out the first document where that would hold out none."""
        hashes = self._hashes
        if hashes is None or plan.held_out_below == 0 or hashes.lowest == hashes.highest:
            return plan.held_out_below
        return max(plan.held_out_below, hashes.lowest + 1)

    def finish(self, plan: Plan, sources: Sequence[Source]) -> Prepared:
        """Writes the manifest and makes the folder appear under its name.

        Raises:
            DataError: no row is left.
        """
        if not any(info.rows for info in self._splits.values()):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._bad.items()) or "there are none"
            raise DataError(f"{', '.join(plan.settings.sources)}: no usable rows ({reasons})")
        manifest = self._manifest(plan, sources)
        manifest.write(self.folder)
        if self.out.exists():
            old = self.folder.with_name(self.folder.name + "-old")
            self.out.rename(old)
            self.folder.rename(self.out)
            shutil.rmtree(old)
        else:
            self.folder.rename(self.out)
        return Prepared(self.out, manifest, self._examples)

    def _manifest(self, plan: Plan, sources: Sequence[Source]) -> Manifest:
        settings = plan.settings
        return Manifest(
            tokenizer=plan.tokenizer,
            sequence_length=settings.sequence_length,
            dtype=token_dtype(plan.tokenizer.vocab_size),
            packing=plan.packing,
            seed=settings.seed,
            held_out=0.0 if settings.held_out_sources else settings.held_out,
            splits=self._splits,
            sources=tuple(
                SourceInfo(path=source.name, bytes=source.size, documents=self._documents[i])
                for i, source in enumerate(sources)
            ),
            bad_rows=dict(sorted(self._bad.items())),
            document_lengths=dict(sorted(self._lengths.items())),
        ).with_digest()

    def _merged(self, name: SplitName, total: SplitInfo, info: SplitInfo, folder: Path) -> SplitInfo:
        """The totals with a unit's added; its shards are numbered on and moved."""
        shards = list(total.shards)
        for shard in info.shards:
            file = f"{name}-{len(shards):05d}.arrow"
            (folder / shard.file).rename(self.folder / file)
            shards.append(shard.model_copy(update={"file": file}))
        counts = ("rows", "tokens", "targets", "bytes", "documents")
        sums = {count: getattr(total, count) + getattr(info, count) for count in counts}
        return SplitInfo(**sums, shards=tuple(shards))

    def _add_bad_rows(self, unit: Unit, result: UnitResult, strict: bool) -> None:
        """Appends the unit's bad rows, with rows numbered from the beginning of their file."""
        first_rows = []
        for part, rows in zip(unit.parts, result.rows_of_parts, strict=False):  # strict units end early
            first_rows.append(self._rows_before[part.file.path])
            self._rows_before[part.file.path] += rows
        first_rows += [self._rows_before[part.file.path] for part in unit.parts[len(first_rows) :]]
        with (result.folder / BAD_ROWS_FILE).open() as lines, (self.folder / BAD_ROWS_FILE).open("a") as file:
            for line in lines:
                found = json.loads(line)
                path = unit.parts[found["part"]].file.path
                row = first_rows[found["part"]] + found["row"]
                bad = BadRowRecord(path, row, found["reason"], found["detail"])
                file.write(json.dumps(asdict(bad)) + "\n")
                self._count_bad_row(bad, strict)

    def _count_bad_row(self, bad: BadRowRecord, strict: bool) -> None:
        if strict:
            raise DataError(f"{bad.file}, row {bad.row}: {bad.reason} ({bad.detail}); without --strict it is left out")
        self._bad[bad.reason] += 1
        if self._bad[bad.reason] <= EXAMPLES_PER_REASON:
            self._examples.append(bad)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuses to replace anything but prepared data, and that only if asked to.

    Raises:
        DataError: `out` exists and may not be replaced.
    """
    if not out.exists():
        return
    is_prepared = (out / FILE_NAME).is_file()
    if is_prepared and not overwrite:
        raise DataError(f"{out}: prepared data exists here; --overwrite replaces it, or choose another --out")
    if not is_prepared and (out.is_file() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not prepared data; choose another --out")
