"""Preparing data on Ray gives byte for byte what one process gives."""

from pathlib import Path

import pytest
from support.full import full
from support.texts import prepare_here, write_lines

from lowland.platform.preparation import prepare
from lowland.trainers.data.plan import PrepareSettings
from lowland.trainers.errors import DataError

pytestmark = pytest.mark.ray

HOW = {"sequence_length": 64, "held_out": 0.1, "unit_bytes": 20_000}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"text": f"document {i} " * (1 + i % 20)} for i in range(2000)]
    return write_lines(tmp_path / "in.jsonl", [*rows, b"broken", *rows])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [full(1), 2])
def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path: Path, source: Path, workers: int):
    seen: list[tuple[int, int]] = []
    settings = PrepareSettings((str(source),), **HOW)  # type: ignore[arg-type]
    on_ray = prepare(settings, tmp_path / "ray", workers=workers, on_progress=lambda *done: seen.append(done))
    here = prepare_here(tmp_path / "here", source, **HOW)
    assert len(here.manifest.splits["train"].shards) > 10
    assert files_of(on_ray.folder) == files_of(here.folder)
    size = source.stat().st_size
    assert seen[0] == (0, size)
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


def test_what_a_task_raises_is_shown_as_it_is_and_nothing_is_left(tmp_path: Path, source: Path):
    settings = PrepareSettings((str(source),), strict=True, **HOW)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="row 2001: undecodable"):
        prepare(settings, tmp_path / "out", workers=2)
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"broken\.jsonl\.gz: cannot be read"):
        prepare(PrepareSettings((str(source), str(broken)), text_column="text", **HOW), tmp_path / "out", workers=2)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl.gz", "in.jsonl"]
