"""Tokenizers: exact round trips, exact byte counts, and the assistant's part of a conversation."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.texts import FORGETFUL_TEMPLATE, MARKED_TEMPLATE, PLAIN_TEMPLATE, SENTENCES, save_tokenizer
from transformers import AutoTokenizer

from lowland.trainers.data.chat import ChatError
from lowland.trainers.data.tokenizers import (
    BYTE_SEPARATOR,
    HuggingFaceTokenizer,
    byte_pretrained_tokenizer,
    bytes_per_token,
    load_tokenizer,
    tokenizer_for,
)
from lowland.trainers.errors import DataError

BYTES = load_tokenizer("byte")
PRETRAINED_BYTES = byte_pretrained_tokenizer()

unicode_text = st.text(st.characters(codec="utf-8"))


@settings(deadline=None)
@given(unicode_text)
def test_byte_tokens_are_the_bytes_in_both_forms(text: str):
    ids = BYTES.encode(text).ids.tolist()
    assert ids == list(text.encode())
    assert PRETRAINED_BYTES(text, split_special_tokens=True).input_ids == ids
    assert PRETRAINED_BYTES.decode(ids) == text


def test_the_byte_tokenizer_survives_saving(tmp_path: Path):
    tokenizer_for(BYTES.info).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "\n".join(SENTENCES)
    assert loaded.decode(loaded(text).input_ids) == text
    ids = (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, len(loaded))
    assert ids == (BYTES.info.bos_id, BYTES.info.eos_id, BYTES.info.pad_id, BYTES.info.vocab_size)
    assert loaded.decode([BYTE_SEPARATOR, 104, 105, BYTE_SEPARATOR], skip_special_tokens=True) == "hi"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(save_tokenizer(tmp_path_factory.mktemp("bpe")))


@settings(deadline=None)
@given(text=st.one_of(unicode_text, st.sampled_from(SENTENCES)))
def test_bytes_per_token_add_up_to_the_text(bpe: HuggingFaceTokenizer, text: str):
    coded = bpe.encode(text)
    assert coded.num_bytes.sum() == len(text.encode())
    assert (coded.num_bytes >= 0).all()
    assert bpe.tokenizer.decode(coded.ids.tolist()) == text


def test_bytes_per_token_is_the_length_of_each_token(bpe: HuggingFaceTokenizer):
    coded = bpe.encode(SENTENCES[0])
    assert coded.num_bytes.tolist() == [len(bpe.tokenizer.decode([token])) for token in coded.ids.tolist()]
    assert max(coded.num_bytes) > 1


def test_a_character_of_several_tokens_counts_once():
    assert bytes_per_token("é", 2, [(0, 1), (0, 1)]).tolist() == [2, 0]
    assert bytes_per_token(" a ", 1, [(1, 2)]).tolist() == [3]  # what a normaliser strips counts too
    assert bytes_per_token("abcdefg", 3, None).tolist() == [2, 2, 3]


def test_names_of_special_tokens_in_text_are_text(bpe: HuggingFaceTokenizer):
    text = "a <|end|> b <|im_end|>"
    coded = bpe.encode(text)
    assert not np.isin(coded.ids, bpe.tokenizer.all_special_ids).any()
    assert bpe.tokenizer.decode(coded.ids.tolist()) == text


def test_lone_surrogates_are_refused_not_replaced(bpe: HuggingFaceTokenizer):
    for tokenizer in (BYTES, bpe):
        with pytest.raises(UnicodeEncodeError):
            tokenizer.encode("a\ud800")


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Höhe?"},
    {"role": "assistant", "content": "Zwölf — m."},
    {"role": "user", "content": "assistant\nreally?"},
    {"role": "assistant", "content": "Yes 😀."},
]


@pytest.mark.parametrize("template", [MARKED_TEMPLATE, PLAIN_TEMPLATE])
def test_only_what_the_assistant_said_is_predicted(tmp_path: Path, template: str):
    tokenizer = HuggingFaceTokenizer(save_tokenizer(tmp_path, template=template))
    coded, by_assistant = tokenizer.chat(CONVERSATION)
    predicted = tokenizer.tokenizer.decode(coded.ids[by_assistant].tolist())
    # A template without marks cannot say that the line end after a message is not the assistant's.
    end = "<|im_end|>" if template is MARKED_TEMPLATE else "<|im_end|>\n"
    assert predicted == "Zwölf — m." + end + "Yes 😀." + end
    said = predicted.replace("<|im_end|>", "")
    assert coded.num_bytes[by_assistant].sum() == len(said.encode())
    assert coded.ids.tolist() == tokenizer.tokenizer.apply_chat_template(CONVERSATION, return_dict=False)


def test_a_template_that_rewrites_earlier_turns_is_noticed(tmp_path: Path):
    tokenizer = HuggingFaceTokenizer(save_tokenizer(tmp_path, template=FORGETFUL_TEMPLATE))
    tokenizer.chat(CONVERSATION[:3])
    with pytest.raises(ChatError, match="message 3 differently"):
        tokenizer.chat(CONVERSATION)


def test_what_a_template_refuses_is_a_chat_error(tmp_path: Path):
    template = "{{ raise_exception('roles must alternate') }}"
    tokenizer = HuggingFaceTokenizer(save_tokenizer(tmp_path, template=template))
    with pytest.raises(ChatError, match="roles must alternate"):
        tokenizer.chat(CONVERSATION)


def test_no_chat_template_says_the_way_out(bpe: HuggingFaceTokenizer):
    for tokenizer in (BYTES, bpe):
        with pytest.raises(DataError, match="no chat template; take --tokenizer of a chat model"):
            tokenizer.chat(CONVERSATION)


def test_the_digest_tells_tokenizers_apart(tmp_path: Path):
    same = [HuggingFaceTokenizer(save_tokenizer(tmp_path / name)).info.digest for name in ("a", "b")]
    assert same[0] == same[1]
    other = HuggingFaceTokenizer(save_tokenizer(tmp_path / "c", vocabulary=300)).info.digest
    chat = HuggingFaceTokenizer(save_tokenizer(tmp_path / "d", template=PLAIN_TEMPLATE)).info.digest
    assert len({same[0], other, chat}) == 3


def test_a_changed_tokenizer_is_noticed(tmp_path: Path):
    info = HuggingFaceTokenizer(save_tokenizer(tmp_path)).info
    assert tokenizer_for(info).eos_token_id == info.eos_id
    save_tokenizer(tmp_path, vocabulary=300)
    with pytest.raises(DataError, match="has changed"):
        tokenizer_for(info)


def test_no_such_tokenizer(tmp_path: Path):
    with pytest.raises(DataError, match="neither `byte` nor a folder or hub id"):
        load_tokenizer(str(tmp_path / "nothing"))
