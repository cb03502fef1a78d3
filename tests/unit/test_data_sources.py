"""What a source names, and what it leaves out."""

import sysconfig
from pathlib import Path

import fsspec
import pytest
from support.texts import prepare_here, write_lines

from lowland.trainers.data.readers import read_rows
from lowland.trainers.data.sources import list_files
from lowland.trainers.data.units import Part
from lowland.trainers.errors import DataError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a.txt",
        "b.md",
        "c.py",
        "sub/d.txt",
        "sub/deep/e.py",
        ".git/f.txt",
        "__pycache__/g.txt",
        "h.jsonl.gz",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(source: str, root: Path, *include: str) -> list[str]:
    return [str(Path(file.path).relative_to(root)) for file in list_files(source, include)]


def test_a_folder_is_read_with_all_below_but_hidden_folders(tree: Path):
    assert names(str(tree), tree) == ["a.txt", "b.md", "h.jsonl.gz", "sub/d.txt"]


def test_include_replaces_what_is_read(tree: Path):
    assert names(str(tree), tree, "*.py") == ["c.py", "sub/deep/e.py"]
    assert names(str(tree), tree, "sub/*.txt", "b.*") == ["b.md", "sub/d.txt"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.py", ["c.py"]),
        ("**/*.py", ["c.py", "sub/deep/e.py"]),
        ("sub/?.txt", ["sub/d.txt"]),
        ("s*/d*/*", ["sub/deep/e.py"]),
    ],
)
def test_globs(tree: Path, pattern: str, expected: list[str]):
    assert names(f"{tree}/{pattern}", tree) == expected


def test_a_named_file_is_read_whatever_its_ending(tree: Path):
    (file,) = list_files(str(tree / "c.py"))
    assert (file.format, file.size) == ("text", 4)


def test_formats_and_compression(tree: Path):
    (file,) = list_files(str(tree / "h.jsonl.gz"))
    assert (file.format, file.compression) == ("jsonl", "gzip")


def test_file_uris(tree: Path):
    assert names(f"file://{tree}/sub", tree) == ["sub/d.txt"]


def test_filesystems_of_fsspec(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/lowland-test/a.txt": b"first", "/lowland-test/sub/b.txt": b"second"})
    files = list_files("memory://lowland-test")
    assert [file.size for file in files] == [5, 6]
    assert [row for file in files for row in read_rows(Part(0, file), ["text"])] == [
        {"text": "first"},
        {"text": "second"},
    ]
    assert len(list_files("memory://lowland-test/*.txt")) == 1
    manifest = prepare_here(tmp_path / "out", "memory://lowland-test", held_out=0.0).manifest
    assert manifest.splits["train"].documents == 2


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.txt", "nothing://bucket/x"])
def test_a_source_that_is_not_there(tmp_path: Path, source: str):
    with pytest.raises(DataError, match=source.split("*")[0]):
        list_files(source if "://" in source else str(tmp_path / source))


def test_a_folder_without_a_file_that_matches(tree: Path):
    with pytest.raises(DataError, match=r"no file matches --include \*\.rs"):
        list_files(str(tree), ["*.rs"])


def test_the_standard_library_without_its_tests():
    root = Path(sysconfig.get_path("stdlib"))
    found = names("stdlib", root)
    assert {"os.py", "json/decoder.py"} <= set(found)
    assert all(name.endswith(".py") for name in found)
    assert not any(name.startswith(("test/", "idlelib/", "site-packages/")) for name in found)
    assert sum(file.size for file in list_files("stdlib")) > 4e6


def test_a_file_named_twice_is_read_once(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "once"}])
    manifest = prepare_here(tmp_path / "out", path, tmp_path, path, held_out=0.0).manifest
    assert manifest.splits["train"].documents == 1


def test_a_name_with_brackets_is_a_name_first(tmp_path: Path):
    (tmp_path / "a[1].txt").write_text("x")
    assert names(f"{tmp_path}/a[1].txt", tmp_path) == ["a[1].txt"]
