"""Every format gives the same rows, however it is cut into parts."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.texts import write_lines

from lowland.trainers.data.documents import BadRowError
from lowland.trainers.data.readers import column_names, read_rows
from lowland.trainers.data.sources import SourceFile, list_files
from lowland.trainers.data.units import Part, cut_parts, group_parts
from lowland.trainers.errors import DataError

ROWS = [{"text": f"row {i} ü", "number": i} for i in range(1000)]
TEXTS = [row["text"] for row in ROWS]


def only_file(path: Path) -> SourceFile:
    (file,) = list_files(str(path))
    return file


def texts(path: Path, unit_bytes: int = 1 << 30) -> list[object]:
    parts = cut_parts([only_file(path)], 0, unit_bytes)
    rows = [row for part in parts for row in read_rows(part, ["text"]) if row is not None]
    return [row["text"] if isinstance(row, Mapping) else row.reason for row in rows]


def test_json_lines_plain_and_compressed(tmp_path: Path):
    data = write_lines(tmp_path / "a.jsonl", ROWS).read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "c.jsonl.zst").write_bytes(pa.compress(data, codec="zstd", asbytes=True))
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        assert texts(tmp_path / name) == TEXTS
        assert column_names(only_file(tmp_path / name)) == ["text", "number"]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=20), st.integers(1, 60), st.booleans())
def test_byte_ranges_of_json_lines_lose_and_repeat_no_line(lines: list[str], unit_bytes: int, last_newline: bool):
    import tempfile

    data = b"\n".join(json.dumps({"text": line}, ensure_ascii=False).encode() for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(data + b"\n" if last_newline else data)
        assert texts(path, unit_bytes) == lines


def test_parquet_by_row_groups(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=90)
    parts = list(cut_parts([only_file(path)], 0, 1000))
    assert len(parts) > 3
    assert texts(path, 1000) == texts(path) == TEXTS
    assert column_names(only_file(path)) == ["text", "number"]


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_streams(tmp_path: Path, new: object):
    table = pa.Table.from_pylist(ROWS)
    path = tmp_path / "a.arrow"
    with new(str(path), table.schema) as writer:  # type: ignore[operator]
        writer.write_table(table, max_chunksize=77)
    assert texts(path) == TEXTS
    assert column_names(only_file(path)) == ["text", "number"]


def test_feather(tmp_path: Path):
    from pyarrow import feather

    feather.write_feather(pa.Table.from_pylist(ROWS), str(tmp_path / "a.feather"), compression="zstd")
    assert texts(tmp_path / "a.feather") == TEXTS


def test_a_text_file_is_one_row_as_it_is(tmp_path: Path):
    (tmp_path / "a.md").write_bytes("\ufeffone\r\n\ttwo 山\n".encode())
    assert texts(tmp_path / "a.md") == ["one\r\n\ttwo 山\n"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert texts(tmp_path / "a.txt.gz") == ["packed"]


def test_rows_that_cannot_be_read_come_in_their_place(tmp_path: Path):
    lines = write_lines(tmp_path / "a.jsonl", [{"text": "a"}, b"\xff", b"{", b"[1]", b"", {"text": "b"}])
    assert texts(lines) == ["a", "undecodable", "undecodable", "wrong type", "b"]
    (tmp_path / "b.txt").write_bytes(b"ab\xff")
    assert texts(tmp_path / "b.txt") == ["undecodable"]
    strings = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe")]
    )
    pq.write_table(pa.table({"text": strings}), tmp_path / "c.parquet")
    assert texts(tmp_path / "c.parquet") == ["a", "undecodable"]


def test_a_blank_line_is_no_row_but_a_line(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a"}, b"  ", {"text": "b"}])
    assert list(read_rows(Part(0, only_file(path)), ["text"])) == [{"text": "a"}, None, {"text": "b"}]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"this is none of these formats")
    with pytest.raises(DataError, match=name):
        texts(tmp_path / name)


def test_parts_are_grouped_up_to_the_size_of_a_unit():
    file = SourceFile("a", 10, "text", None)
    parts = [Part(0, file, size=size) for size in (5, 4, 3, 20, 1, 1)]
    assert [[part.size for part in group] for group in group_parts(parts, 10)] == [[5, 4], [3], [20], [1, 1]]


def test_an_undecodable_row_says_where(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "\xff"}'])
    (row,) = read_rows(Part(0, only_file(path)), ["text"])
    assert isinstance(row, BadRowError)
    assert "byte 10" in row.detail
