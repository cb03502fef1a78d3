"""The pages on optimizers keep step with the table of methods, and their example works."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.docs import ROOT, blocks

from lowland.optim.conformance import Subject, conformance, sight
from lowland.optim.methods import AROUND, METHODS

PAGE = ROOT / "docs" / "optimizers.md"
HOW_TO = ROOT / "docs" / "how-to" / "add-an-optimizer.md"


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    section = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]


def test_the_page_has_the_methods_in_their_order() -> None:
    listed = {row[0].strip("`"): row[2] for row in rows("Methods")}
    assert listed == {name: method.sees for name, method in METHODS.items()}
    assert [row[0].strip("`") for row in rows("Around any of them")] == list(AROUND)


def test_the_sharding_table_has_every_row() -> None:
    assert [row[0].strip("`") for row in rows("Exact under sharding")] == [*METHODS, *AROUND]


@pytest.fixture
def example(tmp_path: Path) -> ModuleType:
    """The file of the how-to, written and imported."""
    text = next(block for block in blocks(HOW_TO, "python") if "class Bounded" in block and "import" in block)
    path = tmp_path / "bounded_example.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_conforms(example: ModuleType) -> None:
    subject = Subject("bounded", example.Bounded, {"lr": 0.1})
    assert [f"{result.check}: {result.reason}" for result in conformance(subject) if not result.passed] == []
    assert sight(subject).sees == "tensors"


def test_the_example_names_its_bounds(example: ModuleType) -> None:
    with pytest.raises(ValueError, match=re.escape("momentum in [0, 1) must hold, got 1")):
        example.Bounded([], lr=0.1, momentum=1)
