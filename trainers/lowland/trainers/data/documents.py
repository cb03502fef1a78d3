"""From a row of a source to a document: its tokens, and which of them are to be predicted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lowland.trainers.data.chat import ChatError
from lowland.trainers.data.tokenizers import Encoded, TextTokenizer

Content = Literal["text", "completion", "messages"]
"""What rows hold: plain text, a prompt and its completion, or a conversation."""

Reason = Literal[
    "undecodable", "wrong type", "missing column", "empty", "too long", "nothing to predict", "chat template"
]
"""Why a row was left out."""


class BadRowError(Exception):
    """A row that cannot become a document."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Document:
    """Tokens of a document, from its beginning mark to its end mark where the tokenizer has them."""

    tokens: npt.NDArray[np.uint32]
    """[n]"""
    targets: npt.NDArray[np.bool_]
    """[n] which tokens are predicted; never the first, which nothing precedes."""
    num_bytes: npt.NDArray[np.int32]
    """[n] UTF-8 bytes of each token's text."""

    def __len__(self) -> int:
        return len(self.tokens)


def columns_of(content: Content, text_column: str) -> tuple[str, ...]:
    """The columns that a row must have."""
    return {"text": (text_column,), "completion": ("prompt", "completion"), "messages": ("messages",)}[content]


class DocumentMaker:
    """Makes documents of rows of one kind of content."""

    def __init__(self, tokenizer: TextTokenizer, content: Content, text_column: str) -> None:
        self._tokenizer, self._content = tokenizer, content
        self._columns = columns_of(content, text_column)

    def make(self, row: Mapping[str, Any]) -> Document:
        """The document of a row.

        Raises:
            BadRowError: the row has not what it should.
        """
        try:
            document = self._document([_column(row, name) for name in self._columns])
        except UnicodeEncodeError as error:
            raise BadRowError("undecodable", f"lone surrogate at character {error.start}") from None
        except ChatError as error:
            raise BadRowError("chat template", str(error)) from None
        if not document.targets.any():
            raise BadRowError("nothing to predict", "no token of this row would be trained on")
        return document

    def _document(self, values: list[Any]) -> Document:
        if self._content == "messages":
            coded, by_assistant = self._tokenizer.chat(_messages(values[0]))
            return _finished([coded], by_assistant)
        texts = [_text(value, name) for value, name in zip(values, self._columns, strict=True)]
        if not texts[-1]:
            raise BadRowError("empty", f"`{self._columns[-1]}` is empty")
        if self._content == "text":
            return self._marked(self._tokenizer.encode(texts[0]), None)
        return self._marked(self._tokenizer.encode(texts[1]), self._tokenizer.encode(texts[0]))

    def _marked(self, predicted: Encoded, context: Encoded | None) -> Document:
        """Puts [bos] before and [eos] after; context is given, not predicted."""
        info = self._tokenizer.info
        given = [_mark(info.bos_id)] + ([context] if context else [])
        parts = [*given, predicted, _mark(info.eos_id)]
        length, skipped = (sum(len(part.ids) for part in some) for some in (parts, given))
        return _finished(parts, np.arange(length) >= skipped)


def _mark(token: int | None) -> Encoded:
    ids = np.array([] if token is None else [token], dtype=np.uint32)
    return Encoded(ids, np.zeros(len(ids), dtype=np.int32))


def _finished(parts: list[Encoded], targets: npt.NDArray[np.bool_]) -> Document:
    targets[:1] = False
    tokens = np.concatenate([part.ids for part in parts])
    return Document(tokens, targets, np.concatenate([part.num_bytes for part in parts]))


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise BadRowError("missing column", f"no `{name}`; the row has {', '.join(row) or 'nothing'}")
    if row[name] is None:
        raise BadRowError("empty", f"`{name}` is null")
    return row[name]


def _text(value: Any, name: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadRowError("undecodable", f"`{name}`: byte {error.start} is not UTF-8") from None
    if not isinstance(value, str):
        raise BadRowError("wrong type", f"`{name}` is {type(value).__name__}, not text")
    return value


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise BadRowError("wrong type", "`messages` is not a list of messages")
    if not value:
        raise BadRowError("empty", "`messages` is empty")
    # Parquet gives every message the fields of all; a template takes a null for a value.
    messages = [{name: field for name, field in message.items() if field is not None} for message in value]
    for i, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise BadRowError("wrong type", f"message {i + 1} has no text `role`")
        if not isinstance(message.get("content", ""), str):
            raise BadRowError("wrong type", f"`content` of message {i + 1} is not text")
        if "content" in message:
            message["content"].encode()
    return messages
