"""Every module imports alone; what a module lists is there and sorted, and a package lists all it offers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    ".".join(path.relative_to(ROOT / root).with_suffix("").parts).removesuffix(".__init__"): path
    for root in ("platform", "trainers", "search_spaces")
    for path in sorted((ROOT / root).rglob("*.py"))
}
LISTED = {name: path for name, path in SOURCES.items() if "__all__" in path.read_text(encoding="utf-8")}

# Other people's heavy modules are imported once; each of ours then in a fork that has none of ours.
IMPORT_EACH_ALONE = """
import importlib, os, sys, traceback
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
for name in [name for name in sys.modules if name.startswith("lowland")]:
    del sys.modules[name]
failed = []
for name in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != "triton":  # comes with torch on GPU hosts
                traceback.print_exc()
                os._exit(1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != 0:
        failed.append(name)
sys.exit(f"cannot be imported alone: {failed}" if failed else 0)
"""


@pytest.mark.full  # two minutes
def test_every_module_imports_alone():
    result = subprocess.run([sys.executable, "-c", IMPORT_EACH_ALONE, *SOURCES], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", LISTED)
def test_all_is_sorted_and_complete(name):
    tree = ast.parse(LISTED[name].read_text(encoding="utf-8"))
    assert listed(tree) == sorted(listed(tree), key=constants_then_classes)
    assert set(listed(tree)) <= public(tree, name)
    if LISTED[name].name == "__init__.py":
        assert set(listed(tree)) == public(tree, name)


def listed(tree):
    """The names in `__all__`."""
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    return names


def public(tree, package):
    """The names that a module defines, or that a package takes from its own modules."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef) and node.name == "__getattr__":  # what it imports when it is asked for
            inner = [part for part in ast.walk(node) if isinstance(part, ast.ImportFrom)]
            names |= {alias.name for part in inner for alias in part.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def constants_then_classes(name):
    """The order that ruff keeps, too."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
