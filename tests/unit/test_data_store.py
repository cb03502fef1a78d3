"""Prepared data at a URI is copied once, and checked."""

from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
from support.texts import documents_of, prepare_here, write_lines

from lowland.trainers.data.split import PackedSplit
from lowland.trainers.data.store import local_folder, manifest_of
from lowland.trainers.errors import DataError


@dataclass
class Remote:
    """A prepared folder, and the same at a URI."""

    folder: Path
    uri: str

    def put(self, name: str, content: bytes) -> None:
        fsspec.filesystem("memory").pipe(f"{self.uri.removeprefix('memory:/')}/{name}", content)

    def remove(self, name: str) -> None:
        fsspec.filesystem("memory").rm(f"{self.uri.removeprefix('memory:/')}/{name}")


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path / "cache"))
    source = write_lines(tmp_path / "in.jsonl", [{"text": f"document {i}"} for i in range(20)])
    made = Remote(prepare_here(tmp_path / "out", source).folder, f"memory://{tmp_path.name}")
    for path in made.folder.iterdir():
        made.put(path.name, path.read_bytes())
    return made


def test_the_manifest_alone_is_read_where_it_is(remote: Remote, tmp_path: Path):
    assert manifest_of(remote.uri) == manifest_of(remote.folder)
    assert not (tmp_path / "cache").exists()


def test_a_uri_is_read_through_a_copy(remote: Remote):
    split = PackedSplit.open(remote.uri, "train")
    assert split.folder != remote.folder
    assert documents_of(split) == documents_of(PackedSplit.open(remote.folder, "train"))


def test_the_copy_is_made_once(remote: Remote):
    first = local_folder(remote.uri)
    remote.remove("train-00000.arrow")
    assert local_folder(remote.uri) == first


def test_a_damaged_shard_is_not_kept(remote: Remote):
    remote.put("train-00000.arrow", b"damaged")
    with pytest.raises(DataError, match=r"train-00000\.arrow: its sha256"):
        local_folder(remote.uri)
    remote.put("train-00000.arrow", (remote.folder / "train-00000.arrow").read_bytes())
    assert (local_folder(remote.uri) / "train-00000.arrow").is_file()


def test_no_prepared_data_at_the_uri(remote: Remote):
    with pytest.raises(DataError, match=r"no manifest\.json can be read"):
        local_folder(remote.uri + "/elsewhere")


def test_a_local_folder_is_used_as_it_is(tmp_path: Path):
    assert local_folder(tmp_path) == local_folder(str(tmp_path)) == tmp_path
