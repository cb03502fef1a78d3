"""`manifest.json`: what a prepared folder holds, and the digest that names its content."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from lowland.trainers.errors import DataError
from lowland.trainers.recipe import Section

FILE_NAME = "manifest.json"

SplitName = Literal["train", "held_out"]


class TokenizerInfo(Section):
    """The tokenizer that made the tokens."""

    kind: Literal["byte", "huggingface"]
    path: str | None = None
    """Folder or hub id of a Hugging Face tokenizer; null for `byte`."""
    digest: str
    """sha256 of what decides the tokenizer's output (vocabulary, rules, special tokens, chat template)."""
    vocab_size: int
    """Token ids lie in [0, vocab_size)."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int


class ShardInfo(Section):
    """One Arrow IPC file."""

    file: str
    rows: int
    batch_rows: int
    """Rows of each record batch but the last, which may have fewer."""
    sha256: str


class SplitInfo(Section):
    """Totals over the shards of a split."""

    rows: int = 0
    """Packed sequences."""
    tokens: int = 0
    """Tokens in documents, padding not counted; a repeated context token counts each time."""
    targets: int = 0
    """Tokens that are predicted."""
    bytes: int = 0
    """UTF-8 bytes of the text of the predicted tokens."""
    documents: int = 0
    shards: tuple[ShardInfo, ...] = ()


class SourceInfo(Section):
    """One input as it was named on the command line."""

    path: str
    bytes: int
    """Size of the files as stored (compressed, if they are)."""
    documents: int


class Manifest(Section):
    """Description of a prepared folder; a function of its inputs and settings alone (no times, no host names)."""

    format_version: Literal[1] = 1
    tokenizer: TokenizerInfo
    sequence_length: int
    """Tokens per row."""
    dtype: Literal["uint16", "uint32"]
    packing: Literal["split", "fit"]
    """`split` cuts documents at row ends; `fit` keeps each document in one row."""
    seed: int
    """Seed of the held-out choice."""
    held_out: float
    """Fraction of documents that was asked for as held-out; 0 if they come from sources of their own."""
    splits: dict[SplitName, SplitInfo]
    sources: tuple[SourceInfo, ...]
    bad_rows: dict[str, int]
    """Rows that were left out, by reason."""
    document_lengths: dict[int, int]
    """Histogram of document lengths: documents of more than 2^(k-1) and at most 2^k tokens, by 2^k."""
    digest: str = ""
    """sha256 over the shards' digests and the settings."""

    def split(self, name: SplitName, place: str) -> SplitInfo:
        """A split that has rows.

        Raises:
            DataError: it has none; `place`, the folder, is named.
        """
        info = self.splits.get(name, SplitInfo())
        if info.rows == 0:
            raise DataError(f"{place}: the split '{name}' is empty; prepare with more data or another --held-out")
        return info

    def content_digest(self) -> str:
        """The digest this manifest should carry: it changes with any token and with any setting."""
        settings = self.model_dump(mode="json", exclude={"digest", "sources"})
        settings["tokenizer"].pop("path")  # the same tokenizer in another folder makes the same data
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def with_digest(self) -> "Manifest":
        """This manifest, carrying its digest."""
        return self.model_copy(update={"digest": self.content_digest()})

    def write(self, folder: Path) -> None:
        """Writes `manifest.json` into the folder."""
        (folder / FILE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads and checks the manifest of a prepared folder.

        Raises:
            DataError: the folder is not a prepared one, or of another format version, or was edited.
        """
        try:
            text = (folder / FILE_NAME).read_text(encoding="utf-8")
        except OSError:
            raise DataError(
                f"{folder}: no {FILE_NAME} here; prepare the data first: lowland data prepare SOURCE --out {folder}"
            ) from None
        return cls.parse(text, str(folder / FILE_NAME))

    @classmethod
    def parse(cls, text: str, place: str) -> "Manifest":
        """Checks the text of a manifest, read from `place`.

        Raises:
            DataError: it is of another format version, or was edited.
        """
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            raise DataError(f"{place}: not a manifest of this version of lowland ({error})") from None
        if manifest.digest != manifest.content_digest():
            raise DataError(f"{place}: the digest does not match the content; prepare the data again")
        return manifest
