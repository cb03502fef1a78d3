"""Preparing data from end to end, in this process."""

import json
import random
from collections.abc import Generator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.texts import MARKED_TEMPLATE, documents_of, prepare_here, save_tokenizer, write_lines

from lowland.trainers.data.manifest import Manifest
from lowland.trainers.data.plan import PrepareSettings, make_plan
from lowland.trainers.data.prepare import UnitTask, prepare
from lowland.trainers.data.shards import file_sha256
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.data.tokenizers import load_tokenizer, tokenizer_for
from lowland.trainers.data.unit import UnitResult, prepare_unit
from lowland.trainers.data.units import Unit
from lowland.trainers.errors import DataError

TEXTS = [{"text": f"document {i} " * (i % 13)} for i in range(1, 300) if i % 13]


def texts_of(folder: Path) -> list[str]:
    """Documents of both splits, sorted."""
    manifest = Manifest.read(folder)
    found = []
    for name, info in manifest.splits.items():
        if info.rows:
            found += [bytes(ids[1:-1]).decode() for ids in documents_of(PackedSplit.open(folder, name))]
    return sorted(found)


@settings(deadline=None, max_examples=25)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), min_size=1),
    length=st.integers(2, 30),
)
def test_text_in_is_text_out(tmp_path_factory: pytest.TempPathFactory, texts: list[str], length: int):
    place = tmp_path_factory.mktemp("out")
    source = write_lines(place / "in.jsonl", [{"text": text} for text in texts])
    out = prepare_here(place / "out", source, sequence_length=length, held_out=0.3).folder
    assert texts_of(out) == sorted(texts)


def test_the_manifest_counts_what_is_there(tmp_path: Path):
    prepared = prepare_here(tmp_path / "out", write_lines(tmp_path / "in.jsonl", TEXTS), held_out=0.1)
    manifest = Manifest.read(prepared.folder)
    assert manifest == prepared.manifest
    text_bytes = sum(len(row["text"]) for row in TEXTS)
    infos = manifest.splits.values()
    assert sum(info.documents for info in infos) == len(TEXTS) == manifest.sources[0].documents
    assert sum(info.bytes for info in infos) == text_bytes
    assert sum(info.targets for info in infos) == text_bytes + len(TEXTS)  # and the end of each document
    assert sum(manifest.document_lengths.values()) == len(TEXTS)
    for name, info in manifest.splits.items():
        split = PackedSplit.open(prepared.folder, name)
        rows = range(len(split))
        assert split.num_targets(rows).sum() == info.targets
        assert split.num_bytes(rows).sum() == info.bytes
        assert sum(int(split.document_lengths(row).sum()) for row in rows) == info.tokens
        assert all(file_sha256(prepared.folder / shard.file) == shard.sha256 for shard in info.shards)


def in_any_order(task: UnitTask, units: Sequence[Unit]) -> Generator[UnitResult]:
    """As workers would: whichever unit comes first, results in order."""
    shuffled = random.Random(0).sample(units, len(units))
    results = {unit.index: task(unit) for unit in shuffled}
    yield from (results[unit.index] for unit in units)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_result_does_not_depend_on_who_prepares_what(tmp_path: Path):
    source = write_lines(tmp_path / "in.jsonl", [*TEXTS, b"broken", *TEXTS])
    how = PrepareSettings((str(source),), sequence_length=32, held_out=0.1, unit_bytes=1000)
    one, other = prepare(how, tmp_path / "a"), prepare(how, tmp_path / "b", map_units=in_any_order)
    assert len(one.manifest.splits["train"].shards) > 10
    assert files_of(one.folder) == files_of(other.folder)


def test_held_out_is_by_document_and_seed(tmp_path: Path):
    source = write_lines(tmp_path / "in.jsonl", [*TEXTS, *TEXTS])  # every document twice

    def held_out(seed: int) -> list[str]:
        out = prepare_here(tmp_path / str(seed), source, held_out=0.2, seed=seed).folder
        parts = [
            {bytes(ids[1:-1]).decode() for ids in documents_of(PackedSplit.open(out, name))}
            for name in ("train", "held_out")
        ]
        assert parts[0].isdisjoint(parts[1])
        return sorted(parts[1])

    assert 0.1 * len(TEXTS) < len(held_out(0)) < 0.3 * len(TEXTS)
    assert held_out(1) != held_out(2)


@pytest.mark.parametrize("unit_bytes", [None, 1])
def test_of_two_different_documents_one_is_held_out_however_few_they_are(tmp_path: Path, unit_bytes: int | None):
    for n in (2, 3, 7, 11):
        source = write_lines(tmp_path / f"{n}.jsonl", [{"text": f"document {i}"} for i in range(n)])
        splits = prepare_here(tmp_path / str(n), source, held_out=0.01, unit_bytes=unit_bytes).manifest.splits
        assert {name: info.documents for name, info in splits.items()} == {"train": n - 1, "held_out": 1}


def test_the_only_document_and_its_copies_are_trained_on(tmp_path: Path):
    source = write_lines(tmp_path / "in.jsonl", [{"text": "a document"}] * 3)
    splits = prepare_here(tmp_path / "out", source, held_out=0.01).manifest.splits
    assert splits["train"].documents == 3


def test_held_out_sources(tmp_path: Path):
    train = write_lines(tmp_path / "a.jsonl", TEXTS[:50])
    held_out = write_lines(tmp_path / "b.jsonl", TEXTS[50:60])
    manifest = prepare_here(tmp_path / "out", train, held_out_sources=(str(held_out),)).manifest
    assert {name: info.documents for name, info in manifest.splits.items()} == {"train": 50, "held_out": 10}
    assert [source.documents for source in manifest.sources] == [50, 10]


def test_the_digest_changes_with_content_and_settings_only(tmp_path: Path):
    source = write_lines(tmp_path / "in.jsonl", TEXTS)
    moved = write_lines(tmp_path / "moved.jsonl", TEXTS)
    changed = write_lines(tmp_path / "changed.jsonl", [*TEXTS[:-1], {"text": TEXTS[-1]["text"] + "!"}])
    base = prepare_here(tmp_path / "a", source).manifest.digest
    assert prepare_here(tmp_path / "b", moved).manifest.digest == base
    others = [
        prepare_here(tmp_path / "c", changed).manifest.digest,
        prepare_here(tmp_path / "d", source, sequence_length=33).manifest.digest,
        prepare_here(tmp_path / "e", source, packing="fit", sequence_length=32).manifest.digest,
        prepare_here(tmp_path / "f", source, seed=1).manifest.digest,
    ]
    assert len({base, *others}) == 5


def test_an_edited_manifest_is_refused(tmp_path: Path):
    folder = prepare_here(tmp_path / "out", write_lines(tmp_path / "in.jsonl", TEXTS)).folder
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sequence_length": 32', '"sequence_length": 16'))
    with pytest.raises(DataError, match="digest does not match"):
        PackedSplit.open(folder, "train")


BAD_JSON_LINES: list[tuple[object, str]] = [
    (b"\xff\xfe", "undecodable"),
    (b'{"text": ', "undecodable"),
    (b'{"text": "\\ud800"}', "undecodable"),
    ([1, 2], "wrong type"),
    ({"text": 7}, "wrong type"),
    ({"words": "x"}, "missing column"),
    ({"text": ""}, "empty"),
    ({"text": None}, "empty"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_JSON_LINES)
def test_each_bad_row_is_counted_and_shown(tmp_path: Path, line: object, reason: str):
    source = write_lines(tmp_path / "in.jsonl", [{"text": "good"}, b"", line, {"text": "good too"}])
    prepared = prepare_here(tmp_path / "out", source, held_out=0.0)
    assert texts_of(prepared.folder) == ["good", "good too"]
    assert prepared.manifest.bad_rows == {reason: 1}
    (record,) = map(json.loads, (prepared.folder / "bad_rows.jsonl").read_text().splitlines())
    assert (record["file"], record["row"], record["reason"]) == (str(source), 3, reason)
    assert record["detail"]
    assert [(bad.row, bad.reason) for bad in prepared.examples] == [(3, reason)]


@pytest.mark.parametrize(("line", "reason"), BAD_JSON_LINES)
def test_strict_stops_at_the_first_bad_row(tmp_path: Path, line: object, reason: str):
    source = write_lines(tmp_path / "in.jsonl", [{"text": "good"}, line, b"also bad"])
    with pytest.raises(DataError, match=rf"in\.jsonl, row 2: {reason}"):
        prepare_here(tmp_path / "out", source, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_bad_rows_are_numbered_from_the_beginning_of_the_file(tmp_path: Path):
    rows: list[object] = [{"text": f"row {i}"} if i % 10 else b"bad" for i in range(1, 201)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    prepared = prepare_here(tmp_path / "out", source, unit_bytes=150)
    records = map(json.loads, (prepared.folder / "bad_rows.jsonl").read_text().splitlines())
    assert [record["row"] for record in records] == list(range(10, 201, 10))
    assert len(prepared.examples) == 3
    with pytest.raises(DataError, match="row 10: undecodable"):
        prepare_here(tmp_path / "strict", source, unit_bytes=150, strict=True)


def test_too_long_for_fit(tmp_path: Path):
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "why", "completion": "because " * 10}]
    prepared = prepare_here(
        tmp_path / "out", write_lines(tmp_path / "in.jsonl", rows), sequence_length=16, held_out=0.0
    )
    assert prepared.manifest.packing == "fit"
    assert prepared.manifest.bad_rows == {"too long": 1}


def test_only_completions_are_predicted(tmp_path: Path):
    rows = [{"prompt": "2*3=", "completion": "6"}, {"prompt": "", "completion": "free"}]
    out = prepare_here(
        tmp_path / "out", write_lines(tmp_path / "in.jsonl", rows), sequence_length=16, held_out=0.0
    ).folder
    split = PackedSplit.open(out, "train")
    tokens = split.tokens([0])[0]
    predicted = [bytes(tokens[start : end - 1].tolist()).decode() for start, end in split.target_spans(0)]
    assert predicted == ["6", "free"]
    assert split.num_targets([0]).tolist() == [7]  # with the end of both
    assert split.num_bytes([0]).tolist() == [5]


def test_conversations_in_parquet(tmp_path: Path):
    tokenizer = save_tokenizer(tmp_path / "tokenizer", template=MARKED_TEMPLATE)
    chat = [{"role": "user", "content": "low?"}, {"role": "assistant", "content": "Low."}]
    rows = [{"messages": chat}, {"messages": chat[:1]}, {"messages": []}, {"messages": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    prepared = prepare_here(
        tmp_path / "out", tmp_path / "in.parquet", tokenizer=tokenizer, sequence_length=64, held_out=0.0
    )
    assert prepared.manifest.bad_rows == {"empty": 2, "nothing to predict": 1}
    split = PackedSplit.open(prepared.folder, "train")
    ((start, end),) = split.target_spans(0)
    said = tokenizer_for(prepared.manifest.tokenizer).decode(split.tokens([0])[0, start:end].tolist())
    assert said == "Low.<|im_end|>"


@pytest.mark.parametrize(
    "messages", [7, ["hello"], [{"content": "x"}], [{"role": "user", "content": 3}], [{"role": 1, "content": "x"}]]
)
def test_what_is_no_conversation(tmp_path: Path, messages: object):
    tokenizer = save_tokenizer(tmp_path / "tokenizer", template=MARKED_TEMPLATE)
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    source = write_lines(tmp_path / "in.jsonl", [good, {"messages": messages}])
    prepared = prepare_here(tmp_path / "out", source, tokenizer=tokenizer, held_out=0.0)
    assert prepared.manifest.bad_rows == {"wrong type": 1}


def test_chat_without_a_template(tmp_path: Path):
    source = write_lines(tmp_path / "in.jsonl", [{"messages": [{"role": "assistant", "content": "b"}]}])
    with pytest.raises(DataError, match="the tokenizer byte has no chat template"):
        prepare_here(tmp_path / "out", source)


def test_a_column_by_name(tmp_path: Path):
    source = write_lines(tmp_path / "in.jsonl", [{"body": "here", "text": "not here"}])
    assert texts_of(prepare_here(tmp_path / "out", source, text_column="body", held_out=0.0).folder) == ["here"]
    with pytest.raises(DataError, match=r"no column `words`; its columns: `body`, `text`"):
        prepare_here(tmp_path / "other", source, text_column="words")


def test_sources_of_different_content_are_not_mixed(tmp_path: Path):
    one = write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    other = write_lines(tmp_path / "b.jsonl", [{"prompt": "x", "completion": "y"}])
    with pytest.raises(DataError, match=r"text in .*a\.jsonl but completion in .*b\.jsonl"):
        prepare_here(tmp_path / "out", one, other)


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path):
    how = PrepareSettings((str(write_lines(tmp_path / "in.jsonl", TEXTS)),), sequence_length=32)
    out = tmp_path / "out"
    prepare(how, out)
    before = files_of(out)
    with pytest.raises(DataError, match="--overwrite"):
        prepare(how, out)
    other = PrepareSettings((str(write_lines(tmp_path / "in2.jsonl", TEXTS[:9])),), sequence_length=32)
    with pytest.raises(DataError, match="nowhere"):
        prepare(PrepareSettings((str(tmp_path / "nowhere"),), sequence_length=32), out, overwrite=True)
    assert files_of(out) == before
    prepare(other, out, overwrite=True)
    assert files_of(out) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "in2.jsonl", "out"]


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    source = write_lines(tmp_path / "in.jsonl", TEXTS)
    with pytest.raises(DataError, match="not prepared data"):
        prepare(PrepareSettings((str(source),), sequence_length=32), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_nothing_usable_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"no usable rows .*1 empty"):
        prepare_here(tmp_path / "out", write_lines(tmp_path / "in.jsonl", [{"text": ""}]))


@pytest.mark.parametrize(
    ("setting", "value"), [("held_out", 1.0), ("held_out", -0.1), ("sequence_length", 1), ("seed", -1)]
)
def test_settings_out_of_range(tmp_path: Path, setting: str, value: float):
    source = write_lines(tmp_path / "in.jsonl", TEXTS)
    with pytest.raises(DataError, match=f"--{setting.replace('_', '-')}"):
        prepare_here(tmp_path / "out", source, **{setting: value})  # type: ignore[arg-type]


def test_what_is_missing_when_reading(tmp_path: Path):
    with pytest.raises(DataError, match="lowland data prepare"):
        PackedSplit.open(tmp_path, "train")
    folder = prepare_here(tmp_path / "out", write_lines(tmp_path / "in.jsonl", TEXTS), held_out=0.0).folder
    with pytest.raises(DataError, match="'held_out' is empty"):
        PackedSplit.open(folder, "held_out")
    (folder / "train-00000.arrow").unlink()
    with pytest.raises(DataError, match=r"train-00000\.arrow: .* missing"):
        PackedSplit.open(folder, "train")


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path):
    settings = PrepareSettings((str(write_lines(tmp_path / "in.jsonl", TEXTS)),), sequence_length=32)
    plan, _, (unit,) = make_plan(settings, load_tokenizer("byte"))
    with pytest.raises(DataError, match="--out must be on storage that all share"):
        prepare_unit(plan, unit, tmp_path / "elsewhere" / "work")


def test_a_unit_is_prepared_again_after_its_worker_died(tmp_path: Path):
    settings = PrepareSettings((str(write_lines(tmp_path / "in.jsonl", TEXTS)),), sequence_length=32)
    plan, _, (unit,) = make_plan(settings, load_tokenizer("byte"))
    first = prepare_unit(plan, unit, tmp_path)
    (first.folder / "held_out-00099.arrow").write_bytes(b"half of a shard")
    assert prepare_unit(plan, unit, tmp_path) == first
    assert not (first.folder / "held_out-00099.arrow").exists()
