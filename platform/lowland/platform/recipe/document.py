"""A YAML file as plain data that knows the line of every value.

Scalars follow YAML 1.2, as PyYAML does not: `1e-4` is a number, and `on`, `yes` and dates are text.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from lowland.platform.recipe.mistakes import Mistake, Path, Value
from lowland.trainers.errors import RecipeError

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_SCALARS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("null", re.compile(r"~|null|Null|NULL|"), "~nN\0"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
)


class _Loader(yaml.SafeLoader):
    """Composes nodes whose tags follow YAML 1.2's core schema."""

    yaml_implicit_resolvers = {}


_LINE_BREAKS = frozenset("\r\x85\u2028\u2029")


class Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes equal values out twice: anchors are for people."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Quotes a text with a line break other than \\n, which YAML would read back as a space."""
        style = '"' if _LINE_BREAKS.intersection(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


Dumper.add_representer(str, Dumper.represent_str)

for _name, _pattern, _first in _SCALARS:
    _whole = re.compile(f"(?:{_pattern.pattern})\\Z")
    for _class in (_Loader, Dumper):
        _class.add_implicit_resolver(_TAG + _name, _whole, ["" if c == "\0" else c for c in _first])


@dataclass
class Document:
    """Plain data, the place of each value in it, and what was wrong with the text itself."""

    data: Any = None
    places: dict[Path, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def place(self, path: Path) -> str:
        """The place of a field; of the section around it if it is not there."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")


def read_document(path: FilePath) -> Document:
    """Reads a YAML file.

    Raises:
        RecipeError: the file cannot be read, or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file{_neighbours(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    return parse(text, str(path))


def parse(text: str, source: str, *, lines: bool = True) -> Document:
    """Reads YAML text; `source` names it in places, with the line if `lines`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if lines and error.problem_mark else ""
        raise RecipeError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from None
    reader = _Reader(source, lines)
    reader.document.data = reader.read(node, ())
    return reader.document


class _Reader:
    """Turns nodes into data."""

    def __init__(self, source: str, lines: bool) -> None:
        self.document = Document()
        self._source = source
        self._lines = lines
        self._open: list[yaml.Node] = []

    def read(self, node: yaml.Node | None, path: Path) -> Any:
        """The data of a node, whose places and mistakes are noted on the way."""
        self.document.places[path] = self._place(node)
        match node:
            case yaml.ScalarNode():
                return self._scalar(node, path)
            case yaml.MappingNode() | yaml.SequenceNode() if any(node is outer for outer in self._open):
                return self._wrong(node, path, "an anchor inside itself")
            case yaml.MappingNode() if node.tag == _TAG + "map":
                return self._within(node, path)
            case yaml.SequenceNode() if node.tag == _TAG + "seq":
                return self._within(node, path)
            case None:
                return None
            case _:
                return self._wrong(node, path, f"the tag {node.tag} is not supported")

    def _within(self, node: yaml.MappingNode | yaml.SequenceNode, path: Path) -> Any:
        self._open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        first: dict[str, str] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong(key_node, path, "a key must be text")
                continue
            key, place = str(key_node.value), self._place(key_node)
            if key in data:
                value = _Reader(self._source, self._lines).read(value_node, ())
                text = f"given twice, first at {first[key]}; keep one"
                self.document.mistakes.append(Mistake(place, (*path, key), text, Value(value)))
                continue
            first[key] = place
            data[key] = self.read(value_node, (*path, key))
            # A section's line is that of its key, even where its first field starts a line below.
            self.document.places[(*path, key)] = place
        return data

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text = str(node.value)
        try:
            match node.tag.removeprefix(_TAG):
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return _integer(text)
                case "float":
                    return _floating(text)
        except ValueError:
            return self._wrong(node, path, f"'{text}' is not of the type its tag says")
        return self._wrong(node, path, f"the tag {node.tag} is not supported")

    def _wrong(self, node: yaml.Node, path: Path, text: str) -> None:
        self.document.mistakes.append(Mistake(self._place(node), path, text))

    def _place(self, node: yaml.Node | None) -> str:
        if not self._lines or node is None:
            return self._source
        return f"{self._source}:{node.start_mark.line + 1}"


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    return int(digits, 0) if digits[:2] in ("0o", "0x") else int(digits)


def _floating(text: str) -> float:
    digits = text.replace("_", "").lower()
    if digits.endswith(".inf"):
        return -math.inf if digits.startswith("-") else math.inf
    return math.nan if digits == ".nan" else float(digits)


def _neighbours(path: FilePath) -> str:
    names = sorted(str(other) for other in path.parent.glob("*.y*ml"))
    return f"; there are {', '.join(names)}" if names else ""
