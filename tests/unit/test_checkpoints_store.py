"""Where checkpoints lie: local folders and remote file systems behave alike."""

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from lowland.trainers.checkpoints import CheckpointManifest, CheckpointStore, TrainState
from lowland.trainers.checkpoints.manifest import FileEntry
from lowland.trainers.errors import DataError


@pytest.fixture(params=["local", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist yet, here or in a file system known to fsspec alone."""
    if request.param == "local":
        return str(tmp_path / "run" / "checkpoints")
    return f"memory://{tmp_path.name}/run/checkpoints"


def remove(location: str, path: str) -> None:
    filesystem, root = fsspec.core.url_to_fs(location)
    filesystem.rm(f"{root}/{path}")


def write(location: str, path: str, content: bytes) -> None:
    filesystem, root = fsspec.core.url_to_fs(location)
    filesystem.makedirs(f"{root}/{path}".rsplit("/", 1)[0], exist_ok=True)
    filesystem.pipe_file(f"{root}/{path}", content)


def exists(location: str, path: str) -> bool:
    filesystem, root = fsspec.core.url_to_fs(location)
    return bool(filesystem.exists(f"{root}/{path}"))


def content(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


def save(store: CheckpointStore, step: int, **state: object) -> FileEntry:
    store.begin(step)
    entry = store.add(step, "part", content(f"part of {step}"))
    manifest = CheckpointManifest(
        state=TrainState.model_validate({"step": step, **state}),
        optimizer="adamw",
        world_size=1,
        zero_stage=0,
        metadata={"run": "a"},
        files=(entry,),
    )
    store.commit(step, manifest)
    return entry


def test_a_place_that_does_not_exist_holds_no_checkpoints(location: str) -> None:
    assert CheckpointStore(location).steps() == []


def test_round_trip_by_another_store(location: str) -> None:
    entries = {step: save(CheckpointStore(location), step, tokens=7 * step) for step in (20, 3, 100_000_000)}
    store = CheckpointStore(location)
    assert store.steps() == [3, 20, 100_000_000]
    for step, entry in entries.items():
        manifest = store.manifest(step)
        assert manifest.state.tokens == 7 * step
        assert manifest.metadata == {"run": "a"}
        assert manifest.files == (entry,)
        assert store.holds(step, entry)
        with store.local(step) as folder:
            assert (folder / "part").read_text() == f"part of {step}"


def test_a_folder_without_a_manifest_is_no_checkpoint_and_can_be_removed(location: str) -> None:
    store = CheckpointStore(location)
    save(store, 10)
    store.begin(20)
    store.add(20, "part", content("half"))
    save(store, 30)
    remove(location, "step-00000030/manifest.json")
    assert store.steps() == [10]
    store.remove_uncommitted()
    assert not exists(location, "step-00000020/part")
    assert not exists(location, "step-00000030/part")
    assert store.steps() == [10]
    assert exists(location, "step-00000010/part")


def test_other_files_are_left_alone(location: str) -> None:
    write(location, "notes.txt", b"mine")
    write(location, "step-by-step/manifest.json", b"mine")
    store = CheckpointStore(location)
    save(store, 10)
    assert store.steps() == [10]
    store.remove_uncommitted()
    assert exists(location, "notes.txt")
    assert exists(location, "step-by-step/manifest.json")


def test_beginning_again_drops_what_was_there(location: str) -> None:
    store = CheckpointStore(location)
    save(store, 10)
    store.begin(10)
    assert store.steps() == []
    assert not exists(location, "step-00000010/part")


def test_removal_is_complete_and_may_be_repeated(location: str) -> None:
    store = CheckpointStore(location)
    save(store, 10)
    store.remove(10)
    store.remove(10)
    assert store.steps() == []
    assert not exists(location, "step-00000010/part")


def test_damage_is_seen(location: str) -> None:
    store = CheckpointStore(location)
    entry = save(store, 10)
    write(location, "step-00000010/part", b"part of 1_")
    assert not store.holds(10, entry)
    write(location, "step-00000010/part", b"part")
    assert not store.holds(10, entry)
    remove(location, "step-00000010/part")
    with pytest.raises(OSError):
        store.holds(10, entry)


@pytest.mark.parametrize("text", [b"", b"{", b'{"state": 3}', b"\xff"])
def test_a_broken_manifest_is_a_data_error_that_names_it(location: str, text: bytes) -> None:
    save(CheckpointStore(location), 10)
    write(location, "step-00000010/manifest.json", text)
    with pytest.raises(DataError, match=r"step-00000010/manifest.json: not a readable checkpoint manifest"):
        CheckpointStore(location).manifest(10)


def test_metrics_that_are_not_finite_can_be_read_again(location: str) -> None:
    """A skipped step leaves one: as null in JSON it would make the whole checkpoint unreadable."""
    metrics = {"train/grad_norm": float("nan"), "eval/loss": float("inf"), "train/loss": 1 / 3}
    store = CheckpointStore(location)
    save(store, 10, metrics=metrics)
    assert str(store.manifest(10).state.metrics) == str(metrics)


def test_an_unknown_scheme_is_a_data_error() -> None:
    with pytest.raises(DataError, match="nowhere://bucket/run"):
        CheckpointStore("nowhere://bucket/run")


def test_a_local_manifest_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash in the middle of writing it leaves is not a checkpoint."""
    store = CheckpointStore(str(tmp_path))
    monkeypatch.setattr(CheckpointManifest, "model_dump_json", lambda self, indent: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(store, 10)
    assert store.steps() == []
