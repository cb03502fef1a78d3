"""The demo and the quickstart run as they are written, only shorter."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.docs import ROOT, blocks, commands
from support.ray_runs import environment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

SHORT = ["--set", "length=4 steps", "--set", "evaluation={max_sequences: 16}", "--set", "checkpoints.every=null"]
TINY = ["--set", "model.config.hidden_size=32", "--set", "model.config.num_hidden_layers=1"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout to its scripts, and takes what they write."""
    tmp_path = tmp_path_factory.mktemp("checkout")
    for name in ("recipes", "docs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "demo").symlink_to(ROOT / "scripts" / "demo")
    (tmp_path / "scripts" / "setup").write_text("#!/bin/sh\n")
    (tmp_path / "scripts" / "setup").chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def called(folder: Path, *words: str) -> str:
    """What a command prints that must succeed."""
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        words, cwd=folder, env=environment(PATH=path), capture_output=True, text=True, timeout=1500, check=False
    )
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_demo(checkout: Path):
    earlier = checkout / "runs" / "stdlib-adatamw"
    earlier.mkdir(parents=True)  # a demo was there before: names are taken, and it must work all the same
    output = called(checkout, "scripts/demo", *SHORT, *TINY)
    table = output[output.index("$ lowland show") :]
    names = ["stdlib-adamw-", "stdlib-adatamw-", "unigram model, runs/data/stdlib"]
    for name in names:
        (row,) = re.findall(rf"^{name}.*", table, flags=re.MULTILINE)
        loss = float(re.search(r" (\d+\.\d{4})", row)[1])  # type: ignore[index]
        assert 2 < loss < 8
    assert output.count("\ndef ") == 2, "a sample of each"
    assert output.endswith("Open the MLflow UI on the runs with:\n  .venv/bin/lowland ui\n")
    assert not list(earlier.iterdir())
    runs = [path for path in (checkout / "runs").glob("stdlib-*-*-*") if (path / "model" / "config.json").exists()]
    assert len(runs) == 2


@pytest.mark.full
def test_the_quickstart(checkout: Path):
    """In the checkout where the demo has run: what it prepared with the very same command is not prepared again."""
    done, prepared = (ROOT / "scripts" / "demo").read_text(), checkout / "runs" / "data" / "stdlib" / "manifest.json"
    page = ROOT / "docs" / "quickstart.md"
    for text in blocks(page, "yaml"):
        if name := re.match(r"# (\S+\.yaml)\n", text):
            (checkout / name[1]).write_text(text)
    for words in commands(page, "bash"):
        if shlex.join(words) in done and prepared.exists():
            continue
        training = words[1] == "train"
        on_config = training and words[2].startswith("recipes/")
        output = called(checkout, *words, *(SHORT if training else []), *(TINY if on_config else []))
        assert output
    for text in blocks(page, "python"):
        assert "A recipe " in called(checkout, sys.executable, "-c", text)
