"""Rendering a conversation with a tokenizer's chat template, and telling the assistant's tokens in it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lowland.trainers.errors import DataError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatError(Exception):
    """A template cannot render these messages, or the assistant's part of the result cannot be told."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text and tokens."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    """Characters (start, end) of the text that each token stands for."""
    by_assistant: npt.NDArray[np.bool_]
    """[n] whether the assistant wrote the token."""


class ChatRenderer:
    """Applies the chat template of a tokenizer.

    A template that marks the assistant's part with `{% generation %}` is believed.  For any other the
    conversation is rendered turn by turn: what an assistant message adds to the prompt before it is its
    part.  That each rendering begins with the one before is verified for every conversation, since
    some templates rewrite earlier turns.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                f"tokenizer '{tokenizer.name_or_path}': chat `messages` need character offsets, which only fast "
                "tokenizers (with a tokenizer.json) give"
            )
        self._tokenizer = tokenizer
        self._marked = _GENERATION.search(tokenizer.get_chat_template()) is not None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """Renders a conversation.

        Raises:
            ChatError: see there.
        """
        return self._render_marked(messages) if self._marked else self._render_by_turns(messages)

    def _render_marked(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        text = self._text(messages)
        coded = self._tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        mask = np.array(coded["assistant_masks"], dtype=bool)
        return Rendered(text, coded["input_ids"], coded["offset_mapping"], mask)

    def _render_by_turns(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        text = self._text(messages)
        spans = [self._span(messages, i, text) for i, message in enumerate(messages) if message["role"] == "assistant"]
        coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.array(coded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        mask = np.zeros(len(offsets), dtype=bool)
        for start, end in spans:
            mask |= (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
        return Rendered(text, coded["input_ids"], coded["offset_mapping"], mask)

    def _span(self, messages: Sequence[Mapping[str, Any]], i: int, text: str) -> tuple[int, int]:
        """Characters of the rendered text that message i added."""
        before = self._text(messages[:i], prompt=True) if i else ""
        through = self._text(messages[: i + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise ChatError(
                f"the template renders message {i + 1} differently once more messages follow; "
                "mark the assistant's part in it with {% generation %}"
            )
        return len(before), len(through)

    def _text(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False) -> str:
        # A template is a program: what it raises on messages it does not like is not limited to a few types.
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:
            raise ChatError(f"{type(error).__name__}: {error}") from error
        return str(text)
