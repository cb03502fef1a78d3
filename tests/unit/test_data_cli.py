"""`lowland data` on the command line, without Ray."""

import re
from pathlib import Path

import pytest
from support.texts import write_lines
from typer.testing import CliRunner

from lowland.platform.cli.data import app
from lowland.platform.data_report import row_pieces
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.errors import DataError


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"text": f"document number {i}"} for i in range(40)]
    return write_lines(tmp_path / "in.jsonl", [*rows, b"broken", {"text": 3}])


def prepare(source: Path, out: Path, *options: object) -> str:
    return run("prepare", source, "--out", out, "--sequence-length", 16, "--workers", 0, *options)


def test_prepare_shows_what_it_made_and_left_out(source: Path, tmp_path: Path):
    output = prepare(source, tmp_path / "out", "--held-out", "25%")
    assert "2 bad rows, left out" in output
    assert f"{source}, row 41: not JSON" in output
    assert re.search(r"wrong type: 1\n +\S+in\.jsonl, row 42: `text` is int", output)
    assert "lowland data inspect" in output
    manifest = PackedSplit.open(tmp_path / "out", "held_out").manifest
    assert manifest.held_out == 0.25


def test_inspect_shows_splits_lengths_bad_rows_and_the_baseline(source: Path, tmp_path: Path):
    prepare(source, tmp_path / "out", "--held-out", 0.25)
    output = run("inspect", tmp_path / "out")
    manifest = PackedSplit.open(tmp_path / "out", "train").manifest
    assert manifest.digest in output
    assert re.search(rf"predicted tokens +│ +{manifest.splits['train'].targets}", output)
    assert re.search(r"32 │ +40 │ █", output)
    assert "wrong type: 1" in output
    assert re.search(r"Unigram model on held-out text: \d\.\d+ nats per token, \d\.\d+ bits per byte", output)


def test_inspect_prints_rows_with_their_boundaries(source: Path, tmp_path: Path):
    prepare(source, tmp_path / "out", "--held-out", 0)
    output = run("inspect", tmp_path / "out", "--rows", 2)
    assert "row 0: 1 pieces, 16 tokens, 0 padding" in output
    assert "<|document|>document number" not in output.split("row 1:")[1].split("▌")[1]
    assert output.count("<|document|>") == 3  # the first begins and ends, the second begins


def test_row_pieces_tell_context_from_predicted(tmp_path: Path):
    rows = write_lines(tmp_path / "in.jsonl", [{"prompt": "ab", "completion": "c"}, {"prompt": "", "completion": "d"}])
    prepare(rows, tmp_path / "out", "--held-out", 0)
    pieces = list(row_pieces(PackedSplit.open(tmp_path / "out", "train"), 0))
    assert [piece.runs for piece in pieces] == [[(0, 3, False), (3, 5, True)], [(5, 6, False), (6, 8, True)]]


@pytest.mark.parametrize("value", ["ten", "100%", "-1%"])
def test_held_out_must_be_a_fraction(source: Path, tmp_path: Path, value: str):
    with pytest.raises(DataError, match="--held-out"):
        prepare(source, tmp_path / "out", f"--held-out={value}")


def test_help_names_every_option():
    output = run("prepare", "--help")
    for option in ("--tokenizer", "--packing", "--held-out", "--text-column", "--include", "--strict", "--workers"):
        assert option in output
