"""Packing loses nothing, repeats nothing and mixes nothing."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.trainers.data.documents import BadRowError, Document
from lowland.trainers.data.packing import FitPacker, SplitPacker, packer_for
from lowland.trainers.data.shards import Row

unhurried = settings(deadline=None)  # a busy machine is no defect


@st.composite
def documents(draw: st.DrawFn, max_length: int = 40) -> list[Document]:
    """Documents whose tokens are all different, so that each can be followed through packing."""
    lengths = draw(st.lists(st.integers(2, max_length), max_size=12))
    made, first = [], 0
    for length in lengths:
        targets = np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        targets[0] = False
        tokens = np.arange(first, first + length, dtype=np.uint32)
        made.append(Document(tokens, targets, np.full(length, 3, dtype=np.int32)))
        first += length
    return made


def packed(packing: str, length: int, given_documents: list[Document]) -> list[Row]:
    packer = packer_for(packing, length)  # type: ignore[arg-type]
    rows = [row for document in given_documents for row in packer.add(document)]
    return rows + list(packer.finish())


def target_tokens(row: Row) -> list[int]:
    tokens = np.concatenate(row.tokens)
    spans = zip(row.target_spans[::2], row.target_spans[1::2], strict=True)
    return [int(token) for start, end in spans for token in tokens[start:end]]


@pytest.mark.parametrize("packing", ["split", "fit"])
@unhurried
@given(st.data())
def test_every_target_is_predicted_exactly_once(packing: str, data: st.DataObject):
    length = data.draw(st.integers(2, 40))
    some = data.draw(documents(max_length=length if packing == "fit" else 40))
    rows = packed(packing, length, some)
    found = Counter(token for row in rows for token in target_tokens(row))
    assert found == Counter(int(t) for document in some for t in document.tokens[document.targets])
    assert sum(row.num_targets for row in rows) == sum(int(document.targets.sum()) for document in some)
    assert sum(row.num_bytes for row in rows) == sum(int(d.num_bytes[d.targets].sum()) for d in some)


@pytest.mark.parametrize("packing", ["split", "fit"])
@unhurried
@given(st.data())
def test_a_target_follows_its_own_predecessor_within_its_piece(packing: str, data: st.DataObject):
    length = data.draw(st.integers(2, 40))
    some = data.draw(documents(max_length=length if packing == "fit" else 40))
    for row in packed(packing, length, some):
        assert len(row) <= length
        targets = set(target_tokens(row))
        for piece in row.tokens:
            assert int(piece[0]) not in targets  # the first token of a piece is context
            assert all(b == a + 1 for a, b in pairwise(piece.tolist()))


@unhurried
@given(st.integers(1, 40), documents())
def test_split_reassembles_and_pads_only_the_last_row(length: int, some: list[Document]):
    rows = packed("split", length + 1, some)
    assert all(len(row) == length + 1 for row in rows[:-1])
    tokens: list[int] = []
    for piece in (piece.tolist() for row in rows for piece in row.tokens):
        overlap = 1 if tokens and piece[0] == tokens[-1] else 0
        tokens += piece[overlap:]
    assert tokens == [int(token) for document in some for token in document.tokens]


@unhurried
@given(documents(max_length=20))
def test_fit_never_cuts(some: list[Document]):
    pieces = [tuple(piece.tolist()) for row in packed("fit", 20, some) for piece in row.tokens]
    assert Counter(pieces) == Counter(tuple(document.tokens.tolist()) for document in some)


def document(length: int) -> Document:
    return Document(np.arange(length, dtype=np.uint32), np.arange(length) > 0, np.ones(length, dtype=np.int32))


def test_fit_takes_the_row_with_the_least_space():
    packer = FitPacker(10)
    rows = [row for length in (4, 7, 3, 6) for row in packer.add(document(length))]
    assert [[len(piece) for piece in row.tokens] for row in rows] == [[7, 3], [4, 6]]
    assert list(packer.finish()) == []


def test_fit_refuses_what_is_longer_than_a_row_and_goes_on():
    packer = FitPacker(8)
    with pytest.raises(BadRowError) as caught:
        list(packer.add(document(9)))
    assert caught.value.reason == "too long"
    assert "9 tokens" in caught.value.detail
    list(packer.add(document(5)))
    assert [len(row) for row in packer.finish()] == [5]


def test_split_cuts_with_one_token_of_context():
    packer = SplitPacker(4)
    rows = [*packer.add(document(9)), *packer.finish()]
    assert [row.tokens[0].tolist() for row in rows] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8]]
    assert [row.target_spans for row in rows] == [[1, 4], [1, 4], [1, 3]]
