"""What README and docs name exists, what they tell to type is understood, and what they show is right."""

import re
import shlex

import pytest
import typer
import yaml
from recipe_files import data_overrides, write_manifest
from support.docs import DOCS, ROOT, blocks, commands

from lowland.platform.cli import app
from lowland.platform.recipe import load_recipe

ROOMS = ("docs", "recipes", "scripts", "benchmarks", "tests", "platform", "trainers", "search_spaces")

pages = pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))


def test_the_index_lists_every_page():
    linked = set(re.findall(r"\]\(([\w/-]+\.md)\)", (ROOT / "docs" / "README.md").read_text()))
    docs = ROOT / "docs"
    assert linked == {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {"README.md"}


def prose(page):
    """The page without code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """The anchors of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def exists(name):
    """Whether a file is there by its path, or is one of ours by the end of its path."""
    return any(ROOT.glob(name.rstrip("/"))) or any(any((ROOT / room).rglob(f"{name}")) for room in ROOMS)


@pages
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`([\w.*/-]+)`", prose(page)):
        if name.endswith(".py") or ("/" in name and name.split("/")[0] in ROOMS):
            assert exists(name), name


@pages
def test_pages_know_nothing_of_this_machine(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"/root/|/work/|/tmp/|/home/(?!ubuntu|ray)", text)
    assert not re.findall(r"\b(?:sessions?|issue tracker)\b", text, flags=re.IGNORECASE)


def listening(command, heard):
    """The command tree with the work of every command replaced by taking down its arguments."""
    for child in getattr(command, "commands", {}).values():
        listening(child, heard)
    if not hasattr(command, "commands"):
        command.callback = lambda **arguments: heard.append((command.name, arguments))
    return command


def understood(words):
    """The name of the command that these words call, and what it is given."""
    heard = []
    with pytest.raises(SystemExit) as end:
        listening(typer.main.get_command(app), heard)(words)
    assert end.value.code == 0, shlex.join(words)
    return heard[0] if heard else ("", {})


@pages
def test_commands_are_understood(page, tmp_path):
    for words in commands(page):
        _, arguments = understood(words[1:])
        path = ROOT / str(arguments.get("recipe", "none"))
        if path.is_file():
            data = write_manifest(tmp_path / "data", sequence_length=256)
            load_recipe(path, [*(arguments["overrides"] or []), *data_overrides(path, data)])


def test_a_command_that_is_not_understood_is_found():
    assert understood(["train", "a.yaml", "--set", "b=1"])[1]["overrides"] == ["b=1"]
    for words in (["trian"], ["train", "a.yaml", "--sett", "b=1"], ["train"], ["data", "prepare", "x"]):
        with pytest.raises(AssertionError):
            understood(words)


@pages
def test_recipes_are_right(page, tmp_path):
    for text in blocks(page, "yaml"):
        document = yaml.safe_load(text)
        if document and {"name", "length", "optimizer"} <= document.keys():
            path = tmp_path / "recipe.yaml"
            path.write_text(text)
            load_recipe(path, [f"data.path={write_manifest(tmp_path / 'data')}"])


@pages
def test_python_compiles(page):
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")


def test_the_tree_of_the_readme_exists():
    (tree,) = (text for text in blocks(ROOT / "README.md", "text") if "cluster.yaml" in text)
    parents: list[str] = []
    for line in tree.splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        assert (ROOT / "/".join(parents)).exists(), line


def test_the_picture_is_small():
    picture = (ROOT / "docs" / "images" / "mlflow-ui.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000
