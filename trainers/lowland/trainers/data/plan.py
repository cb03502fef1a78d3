"""The plan of a preparation: settings, what the rows hold, and the work units."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lowland.trainers.data.documents import Content, columns_of
from lowland.trainers.data.manifest import SplitName, TokenizerInfo
from lowland.trainers.data.packing import Packing
from lowland.trainers.data.readers import column_names
from lowland.trainers.data.sources import SourceFile, list_files
from lowland.trainers.data.tokenizers import TextTokenizer
from lowland.trainers.data.units import Unit, cut_parts, group_parts, unit_bytes_for
from lowland.trainers.errors import DataError

DEFAULT_TEXT_COLUMN = "text"


@dataclass(frozen=True)
class PrepareSettings:
    """What a user asks for."""

    sources: tuple[str, ...]
    sequence_length: int
    """Tokens per row, at least 2."""
    tokenizer: str = "byte"
    """`byte`, or a folder or hub id."""
    held_out_sources: tuple[str, ...] = ()
    """Sources that are held out as a whole, instead of a fraction of all documents."""
    held_out: float = 0.01
    """Fraction of documents held out, in [0, 1), chosen by a hash of the document and the seed; at least one of
    two different documents, unless it is 0."""
    packing: Packing | None = None
    """None: `split` for plain text, `fit` for completions and conversations."""
    text_column: str | None = None
    """Column with plain text; None takes `messages`, `prompt` and `completion`, or `text`, whatever is there."""
    include: tuple[str, ...] = ()
    """Glob patterns of the files to read in folders."""
    seed: int = 0
    strict: bool = False
    """The first bad row is an error."""
    unit_bytes: int | None = None
    """Size of a work unit; None: by the size of the inputs."""


@dataclass(frozen=True)
class Plan:
    """All that decides the result; a unit's task gets this, without the other units."""

    settings: PrepareSettings
    tokenizer: TokenizerInfo
    content: Content
    packing: Packing
    text_column: str
    held_out_below: int
    """Documents with a hash below this are held out; 2^64 are all."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return columns_of(self.content, self.text_column)


@dataclass(frozen=True)
class Source:
    """A source as named, and its files."""

    name: str
    split: SplitName | None
    files: tuple[SourceFile, ...]

    @property
    def size(self) -> int:
        """Bytes as stored."""
        return sum(file.size for file in self.files)


def make_plan(settings: PrepareSettings, tokenizer: TextTokenizer) -> tuple[Plan, list[Source], list[Unit]]:
    """Lists the files, looks at their columns and cuts the work.

    Raises:
        DataError: a setting out of range, a source that is not there, or sources of different content.
    """
    _check(settings)
    sources = list_sources(settings)
    content, text_column = find_content(sources, settings.text_column)
    packing: Packing = settings.packing or ("split" if content == "text" else "fit")
    plan = Plan(settings, tokenizer.info, content, packing, text_column, int(settings.held_out * 2**64))
    return plan, sources, list(cut_units(sources, settings.unit_bytes))


def list_sources(settings: PrepareSettings) -> list[Source]:
    """The training sources, then the held-out ones, with their files; a file counts where it is named first."""
    default: SplitName | None = "train" if settings.held_out_sources or settings.held_out == 0 else None
    named: list[tuple[str, SplitName | None]] = [(name, default) for name in settings.sources]
    named += [(name, "held_out") for name in settings.held_out_sources]
    seen: set[str] = set()
    sources = []
    for name, split in named:
        files = tuple(file for file in list_files(name, settings.include) if file.path not in seen)
        seen.update(file.path for file in files)
        sources.append(Source(name, split, files))
    return sources


def find_content(sources: Sequence[Source], text_column: str | None) -> tuple[Content, str]:
    """What the rows hold, by the columns of the first file of each format in each source.

    Raises:
        DataError: none of the known columns, or not the same in all sources.
    """
    found: dict[Content, str] = {}
    column = text_column or DEFAULT_TEXT_COLUMN
    for source in sources:
        for _, files in itertools.groupby(sorted(source.files, key=lambda file: file.format), lambda f: f.format):
            file = next(files)
            found.setdefault(_content_of(file, text_column), file.path)
    if len(found) > 1:
        described = " but ".join(f"{content} in {path}" for content, path in found.items())
        raise DataError(f"the sources hold different content: {described}; prepare them apart")
    return next(iter(found)), column


def _content_of(file: SourceFile, text_column: str | None) -> Content:
    if file.format == "text":
        return "text"
    names = column_names(file)
    if text_column is not None:
        candidates: tuple[Content, ...] = ("text",)
    else:
        candidates = ("messages", "completion", "text")
    for content in candidates:
        if set(columns_of(content, text_column or DEFAULT_TEXT_COLUMN)) <= set(names):
            return content
    wanted = f"`{text_column}`" if text_column else "`text`, nor `prompt` and `completion`, nor `messages`"
    there = ", ".join(f"`{name}`" for name in names) or "none that can be read"
    raise DataError(f"{file.path}: no column {wanted}; its columns: {there}; name one with --text-column")


def cut_units(sources: Sequence[Source], unit_bytes: int | None) -> list[Unit]:
    """The work units of all sources; units of different splits never mix."""
    size = unit_bytes or unit_bytes_for(sum(source.size for source in sources))
    units: list[Unit] = []
    for split, group in itertools.groupby(enumerate(sources), lambda pair: pair[1].split):
        parts = itertools.chain.from_iterable(cut_parts(source.files, i, size) for i, source in group)
        units.extend(Unit(len(units) + i, split, some) for i, some in enumerate(list(group_parts(parts, size))))
    return units


def _check(settings: PrepareSettings) -> None:
    if settings.sequence_length < 2:
        raise DataError(f"--sequence-length {settings.sequence_length}: at least 2 (a token and the one it predicts)")
    if not 0 <= settings.seed < 2**64:
        raise DataError(f"--seed {settings.seed}: in [0, 2^64)")
    if not 0 <= settings.held_out < 1:
        raise DataError(
            f"--held-out {settings.held_out:g}: a fraction of documents in [0, 1), or a percentage below 100%"
        )
