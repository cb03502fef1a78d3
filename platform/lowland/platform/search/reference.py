"""The reference of search spaces, made from their models and files: JSON schema for editors, Markdown for people."""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from lowland.platform.recipe.reference import table
from lowland.platform.recipe.schema import RecipeSchema
from lowland.platform.search.space_files import SCHEMA, load_space
from lowland.search_spaces import shipped
from lowland.search_spaces.shipped import FOLDERS

_PARTS = (
    ("A space", "Space"),
    ("A number: `type: float`", "FloatRange"),
    ("A whole number: `type: integer`", "IntegerRange"),
    ("A number without ends: `type: unbounded`", "Unbounded"),
    ("One of several values: `type: choice`", "Choice"),
    ("Alternatives: `type: branch`", "Branch"),
    ("A prior: `prior`", "Prior"),
    ("Where a prior is known: `known_at`", "Setting"),
)
_PLAIN = {"type": ["null", "boolean", "number", "string", "array"]}


def json_schema() -> str:
    """The JSON schema of a space's file, with a final newline."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_with_plain_values(SCHEMA.root)}
    return json.dumps(schema, indent=2) + "\n"


def markdown() -> str:
    """The reference, as `docs/search-spaces.md` holds it."""
    introduction = files("lowland.platform.search").joinpath("reference.md").read_text(encoding="utf-8")
    lines = [introduction.rstrip(), "", "## Fields", ""]
    for title, name in _PARTS:
        lines += [f"### {title}", "", *_fields(SCHEMA, name), ""]
    lines += ["## Spaces that come with lowland", "", *_shipped()]
    return "\n".join(lines) + "\n"


def _fields(schema: RecipeSchema, name: str) -> Iterator[str]:
    node = schema.root if name == "Space" else schema.root["$defs"][name]
    yield from table(schema, node, [field for field in schema.fields(node) if field != "type"])


def _shipped() -> Iterator[str]:
    """A table of all files, in the order of their folders."""
    root = {folder: [n for n, path in shipped().items() if f"/{folder}/" in str(path)] for folder in FOLDERS}
    yield from ("| Name | What | Parameters |", "|---|---|---|")
    for names in root.values():
        for name in names:
            space = load_space(name)
            searched = [f"`{e.name}`" for e in space.entries() if e.parameter.type != "fixed"]
            yield f"| `{name}` | {space.description} | {', '.join(searched)} |"


def _with_plain_values(node: Any) -> Any:
    """A parameter may be a plain value too; the readers turn it into a section before pydantic sees it."""
    if isinstance(node, list):
        return [_with_plain_values(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    inner = {key: _with_plain_values(value) for key, value in node.items()}
    if "patternProperties" in inner:
        inner["patternProperties"] = {
            key: {"anyOf": [value, _PLAIN]} for key, value in inner["patternProperties"].items()
        }
    return inner
