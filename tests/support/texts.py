"""Tokenizers and sources for tests of data preparation."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lowland.trainers.data.assembly import Prepared
from lowland.trainers.data.plan import PrepareSettings
from lowland.trainers.data.prepare import prepare
from lowland.trainers.data.split import PackedSplit

SENTENCES = [
    "The low ground holds the water.",
    "Über den Wipfeln ist Ruh, 山の上 — und 😀!",
    "def area(width: float, height: float) -> float:\n    return width * height\n",
    "  leading spaces,\ttabs\r\nand line ends\n\n",
]

MARKED_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% else %}...{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Rewrites what the assistant said before, once more messages follow."""


def save_tokenizer(folder: Path, *, template: str | None = None, vocabulary: int = 400) -> str:
    """A byte-level BPE tokenizer with a few merges, as a transformers folder; its path."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        SENTENCES * 5,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_lines(path: Path, rows: list[object]) -> Path:
    """Rows as JSON lines; bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def prepare_here(out: Path, *sources: object, sequence_length: int = 32, **settings: object) -> Prepared:
    """Prepares in this process."""
    names = tuple(str(source) for source in sources)
    return prepare(PrepareSettings(sources=names, sequence_length=sequence_length, **settings), out)  # type: ignore[arg-type]


def documents_of(split: PackedSplit) -> list[list[int]]:
    """The documents of data packed by `split`, put together again from their pieces, as token ids.

    A piece that goes on repeats the last token of the one before; byte tokens begin every document with 256.
    """
    documents: list[list[int]] = []
    for row in range(len(split)):
        tokens = split.tokens([row])[0].tolist()
        start = 0
        for length in split.document_lengths(row).tolist():
            piece = tokens[start : start + length]
            open_end = documents and not (len(documents[-1]) > 1 and documents[-1][-1] == 256)
            if open_end:
                assert piece[0] == documents[-1][-1]
                documents[-1] += piece[1:]
            else:
                documents.append(piece)
            start += length
    return documents
