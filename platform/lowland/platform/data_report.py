"""What `lowland data` shows: progress, tables of a prepared folder, and decoded rows."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from lowland.trainers.data.assembly import EXAMPLES_PER_REASON, BadRowRecord, Prepared
from lowland.trainers.data.manifest import Manifest
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.data.tokenizers import tokenizer_for
from lowland.trainers.data.unigram import UnigramBaseline, unigram_baseline
from lowland.trainers.data.unit import BAD_ROWS_FILE

BASELINE_TARGETS = 100_000_000
"""Training targets a unigram model is fitted on at most: seconds, and far more than it needs."""
_BAR_WIDTH = 32


class ByteProgress:
    """A bar over the bytes of the inputs, on a terminal; nothing where there is none."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("preparing"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("preparing", total=None)

    def __enter__(self) -> "ByteProgress":
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Shows that `done` of `total` bytes are prepared."""
        self._bar.update(self._task, completed=done, total=total)


def print_prepared(prepared: Prepared, console: Console) -> None:
    """The result of a preparation."""
    console.print(_splits_table(prepared.manifest))
    _print_bad_rows(prepared.manifest, prepared.examples, console)
    console.print(f"\n[bold]{prepared.folder}[/bold]  digest {prepared.manifest.digest[:16]}")
    if prepared.manifest.splits["held_out"].rows == 0:
        console.print(
            "[yellow]No document is held out[/yellow]; training evaluates on held-out text: raise --held-out."
        )
    console.print(f"Look at it: lowland data inspect {prepared.folder} --rows 3")


def print_folder(folder: Path, console: Console) -> None:
    """Everything there is to say of a prepared folder without printing its text."""
    manifest = Manifest.read(folder)
    console.print(_facts_table(manifest))
    console.print(_splits_table(manifest))
    console.print(_sources_table(manifest))
    console.print(_lengths_table(manifest.document_lengths))
    _print_bad_rows(manifest, first_bad_rows(folder), console)
    if all(info.rows for info in manifest.splits.values()):
        splits = PackedSplit.open(folder, "train"), PackedSplit.open(folder, "held_out")
        _print_baseline(unigram_baseline(*splits, max_train_targets=BASELINE_TARGETS), console)


def first_bad_rows(folder: Path) -> list[BadRowRecord]:
    """The first few of each reason in the folder's `bad_rows.jsonl`."""
    path = folder / BAD_ROWS_FILE
    if not path.exists():
        return []
    seen: dict[str, int] = {}
    examples = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            bad = BadRowRecord(**json.loads(line))
            seen[bad.reason] = seen.get(bad.reason, 0) + 1
            if seen[bad.reason] <= EXAMPLES_PER_REASON:
                examples.append(bad)
    return examples


def print_rows(split: PackedSplit, count: int, console: Console) -> None:
    """The first rows of a split, decoded; tokens that are context and not predicted are dim."""
    tokenizer = tokenizer_for(split.manifest.tokenizer)
    for row in range(min(count, len(split))):
        pieces = list(row_pieces(split, row))
        used = sum(piece.end - piece.start for piece in pieces)
        padding = split.sequence_length - used
        console.rule(f"row {row}: {len(pieces)} pieces, {used} tokens, {padding} padding", align="left")
        tokens = split.tokens([row])[0]
        for piece in pieces:
            parts = [
                (tokenizer.decode(tokens[start:end].tolist()), "" if predicted else "dim")
                for start, end, predicted in piece.runs
            ]
            console.print(Text(f"▌{piece.end - piece.start} tokens", style="cyan"), Text.assemble(*parts), sep="\n")


@dataclass(frozen=True)
class RowPiece:
    """A piece of a document in a row."""

    start: int
    end: int
    runs: list[tuple[int, int, bool]]
    """(start, end, predicted): runs of tokens that are all predicted or all not."""


def row_pieces(split: PackedSplit, row: int) -> Iterator[RowPiece]:
    """The document pieces of a row, in order."""
    spans = [(int(start), int(end)) for start, end in split.target_spans(row)]
    start = 0
    for length in split.document_lengths(row).tolist():
        end = start + length
        inside = [span for span in spans if start <= span[0] < end]
        edges = [start, *(edge for span in inside for edge in span), end]
        runs = [(a, b, i % 2 == 1) for i, (a, b) in enumerate(pairwise(edges)) if a < b]
        yield RowPiece(start, end, runs)
        start = end


def _facts_table(manifest: Manifest) -> Table:
    tokenizer = manifest.tokenizer
    table = Table.grid(padding=(0, 2))
    held_out = f"{manifest.held_out:.3g} of the documents, seed {manifest.seed}" if manifest.held_out else "own sources"
    for name, value in (
        ("tokenizer", f"{tokenizer.path or tokenizer.kind} ({tokenizer.vocab_size} tokens, {tokenizer.digest[:16]})"),
        ("rows of", f"{manifest.sequence_length} tokens ({manifest.dtype}), packing {manifest.packing}"),
        ("held out", held_out),
        ("digest", manifest.digest),
    ):
        table.add_row(Text(name, style="bold"), value)
    return table


def _splits_table(manifest: Manifest) -> Table:
    infos = manifest.splits.values()
    table = Table("split", title="Splits", title_justify="left")
    for name in manifest.splits:
        table.add_column(name, justify="right")
    for count in ("rows", "documents", "tokens", "targets", "bytes"):
        measure = "predicted tokens" if count == "targets" else count
        table.add_row(measure, *(f"{getattr(info, count):,}" for info in infos))
    table.add_row("bytes per token", *(f"{info.bytes / info.targets:.2f}" if info.targets else "-" for info in infos))
    places = [info.rows * manifest.sequence_length for info in infos]
    table.add_row(
        "padding", *(f"{1 - info.tokens / n:.2%}" if n else "-" for info, n in zip(infos, places, strict=True))
    )
    table.add_row("shards", *(f"{len(info.shards):,}" for info in infos))
    return table


def _sources_table(manifest: Manifest) -> Table:
    table = Table("source", title="Sources", title_justify="left")
    table.add_column("bytes", justify="right")
    table.add_column("documents", justify="right")
    for source in manifest.sources:
        table.add_row(source.path, f"{source.bytes:,}", f"{source.documents:,}")
    return table


def _lengths_table(histogram: dict[int, int]) -> Table:
    table = Table(title="Tokens per document", title_justify="left")
    table.add_column("up to", justify="right")
    table.add_column("documents", justify="right")
    table.add_column("")
    most = max(histogram.values(), default=1)
    for length, count in histogram.items():
        table.add_row(f"{length:,}", f"{count:,}", "█" * max(1, round(_BAR_WIDTH * count / most)))
    return table


def _print_bad_rows(manifest: Manifest, examples: Sequence[BadRowRecord], console: Console) -> None:
    if not manifest.bad_rows:
        console.print("No bad rows.")
        return
    total = sum(manifest.bad_rows.values())
    console.print(f"[bold yellow]{total:,} bad rows[/bold yellow], left out; all of them are in {BAD_ROWS_FILE}")
    for reason, count in manifest.bad_rows.items():
        shown = [bad for bad in examples if bad.reason == reason]
        console.print(Text(f"  {reason}: {count:,}", style="bold"))
        for bad in shown:
            console.print(Text(f"    {bad.file}, row {bad.row}: {bad.detail}"))
        if count > len(shown):
            console.print(f"    and {count - len(shown):,} more")


def _print_baseline(baseline: UnigramBaseline, console: Console) -> None:
    console.print(
        f"Unigram model on held-out text: {baseline.loss:.4f} nats per token, "
        f"{baseline.bits_per_byte:.4f} bits per byte"
    )
