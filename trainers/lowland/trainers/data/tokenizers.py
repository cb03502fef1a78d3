"""Tokenizers: bytes, or any Hugging Face tokenizer; each says how many bytes of text a token stands for."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from lowland.trainers.data.manifest import TokenizerInfo
from lowland.trainers.errors import DataError

BYTE_SEPARATOR: Final = 256
"""Id that begins and ends a document in byte tokens."""
BYTE_PAD: Final = 257
BYTE_VOCABULARY: Final = 258


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text."""

    ids: npt.NDArray[np.uint32]
    """[n]"""
    num_bytes: npt.NDArray[np.int32]
    """[n] UTF-8 bytes of each token's text; they add up to those of the whole text."""


class TextTokenizer(Protocol):
    """What preparing data needs of a tokenizer."""

    info: TokenizerInfo

    def encode(self, text: str) -> Encoded:
        """Tokens of the text alone, without beginning or end; names of special tokens in it are plain text.

        Raises:
            UnicodeEncodeError: the text holds lone surrogates, which no UTF-8 can hold.
        """

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Encoded, npt.NDArray[np.bool_]]:
        """Tokens of a rendered conversation and which of them [n] the assistant wrote.

        Raises:
            DataError: the tokenizer has no chat template.
            ChatError: the template refuses these messages, or the assistant's part cannot be told.
        """


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 separates documents, 257 is padding."""

    def __init__(self) -> None:
        self.info = TokenizerInfo(
            kind="byte",
            digest=hashlib.sha256(b"bytes; 256 separator; 257 padding").hexdigest(),
            vocab_size=BYTE_VOCABULARY,
            bos_id=BYTE_SEPARATOR,
            eos_id=BYTE_SEPARATOR,
            pad_id=BYTE_PAD,
        )

    def encode(self, text: str) -> Encoded:
        """One token per byte."""
        ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)
        return Encoded(ids, np.ones(len(ids), dtype=np.int32))

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Encoded, npt.NDArray[np.bool_]]:
        """Always refuses: bytes have no chat template."""
        raise DataError(_NO_TEMPLATE.format("byte"))


class HuggingFaceTokenizer:
    """A tokenizer of transformers, from a local folder or a hub id."""

    def __init__(self, path: str) -> None:
        from lowland.trainers.data.chat import ChatRenderer

        self.tokenizer = _auto_tokenizer(path)
        self.info = TokenizerInfo(
            kind="huggingface",
            path=str(Path(path).resolve()) if Path(path).exists() else path,
            digest=tokenizer_digest(self.tokenizer),
            vocab_size=len(self.tokenizer),
            bos_id=self.tokenizer.bos_token_id,
            eos_id=self.tokenizer.eos_token_id,
            pad_id=_first_id(self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0),
        )
        self._special = np.array(self.tokenizer.all_special_ids, dtype=np.uint32)
        self._renderer = ChatRenderer(self.tokenizer) if self.tokenizer.chat_template else None

    def encode(self, text: str) -> Encoded:
        """Tokens of the text; a token that shares a character with the one before counts its new bytes only."""
        text.encode()  # a tokenizer would replace lone surrogates without a word
        coded = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_offsets_mapping=self.tokenizer.is_fast,
            verbose=False,
        )
        return self._encoded(text, coded["input_ids"], coded.get("offset_mapping"))

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Encoded, npt.NDArray[np.bool_]]:
        """Renders with the tokenizer's chat template; special tokens count no bytes."""
        if self._renderer is None:
            raise DataError(_NO_TEMPLATE.format(self.info.path))
        rendered = self._renderer.render(messages)
        coded = self._encoded(rendered.text, rendered.ids, rendered.offsets)
        coded.num_bytes[np.isin(coded.ids, self._special)] = 0
        return coded, rendered.by_assistant

    def _encoded(self, text: str, ids: list[int], offsets: list[tuple[int, int]] | None) -> Encoded:
        return Encoded(np.array(ids, dtype=np.uint32), bytes_per_token(text, len(ids), offsets))


_NO_TEMPLATE = (
    "the data holds chat `messages`, but the tokenizer {} has no chat template; take --tokenizer of a chat "
    "model, or put a chat_template.jinja into its folder"
)


def bytes_per_token(text: str, count: int, offsets: list[tuple[int, int]] | None) -> npt.NDArray[np.int32]:
    """UTF-8 bytes of the text that each of its tokens adds, [count]; their sum is exactly the text's.

    `offsets` are the characters (start, end) of each token.  Text that a normaliser removed counts
    with the token after it.  Without offsets (tokenizers written in Python) the bytes are spread evenly.
    """
    if count == 0:
        return np.zeros(0, dtype=np.int32)
    total = len(text.encode())
    if offsets is None:
        ends = np.arange(1, count + 1, dtype=np.int64) * total // count
    else:
        character_ends = np.maximum.accumulate(np.array(offsets, dtype=np.int64)[:, 1])
        ends = _byte_ends(text, total)[character_ends]
        ends[-1] = total
    return np.diff(ends, prepend=0).astype(np.int32)


def _byte_ends(text: str, total: int) -> npt.NDArray[np.int64]:
    """Bytes before each character, and of the whole text: [len(text) + 1]."""
    if total == len(text):
        return np.arange(total + 1, dtype=np.int64)
    raw = np.frombuffer(text.encode(), dtype=np.uint8)
    starts = np.flatnonzero((raw & 0xC0) != 0x80)  # every byte but those that continue a character
    return np.append(starts, total)


def load_tokenizer(name: str) -> TextTokenizer:
    """`byte`, or the tokenizer of a folder or hub id.

    Raises:
        DataError: there is no tokenizer of that name, or it cannot be read.
    """
    return ByteTokenizer() if name == "byte" else HuggingFaceTokenizer(name)


def tokenizer_for(info: TokenizerInfo) -> Any:
    """The transformers tokenizer with the ids of prepared data; `save_pretrained` writes it beside a model.

    Raises:
        DataError: it cannot be read, or it is not the one the data was prepared with.
    """
    if info.path is None:
        return byte_pretrained_tokenizer()
    tokenizer = _auto_tokenizer(info.path)
    if tokenizer_digest(tokenizer) != info.digest:
        raise DataError(
            f"{info.path}: this tokenizer has changed since the data was prepared with it; prepare the data again"
        )
    return tokenizer


def byte_pretrained_tokenizer() -> Any:
    """`ByteTokenizer` as a transformers tokenizer with the same ids; decoding gives back any text exactly."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab=_printable_bytes(), merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    separator, pad = "<|document|>", "<|pad|>"
    core.add_special_tokens([AddedToken(separator, special=True), AddedToken(pad, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=separator,
        eos_token=separator,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )


def _printable_bytes() -> dict[str, int]:
    """The characters by which byte-level BPE names the bytes: itself if printable, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {chr(byte): byte for byte in printable}
    return names | {chr(256 + i): byte for i, byte in enumerate(others)}


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of all that decides which tokens a transformers tokenizer makes."""
    core = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [type(tokenizer).__name__, core, special, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _auto_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DataError(
            f"tokenizer '{path}': neither `byte` nor a folder or hub id with a tokenizer ({first_line})"
        ) from error


def _first_id(*ids: int | None) -> int:
    return next(i for i in ids if i is not None)
