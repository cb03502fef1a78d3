"""The recipe's JSON schema: what each field may be, in plain words.

Everything that lowland tells about fields (mistakes, the reference, editors' completion) comes from
this one schema, so a new field needs its type and its docstring and nothing else.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from lowland.platform.recipe.mistakes import Path, flow
from lowland.trainers.recipe import Amount

Node = Mapping[str, Any]
"""A part of a JSON schema."""

_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "greater than"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "less than"),
)
_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}


class _Generator(GenerateJsonSchema):
    def encode_default(self, dft: Any) -> Any:
        """Amounts as a recipe writes them; pydantic would show the dataclass."""
        if isinstance(dft, tuple):
            return [self.encode_default(each) for each in dft]
        return str(dft) if isinstance(dft, Amount) else super().encode_default(dft)


@cache
def _json_schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(schema_generator=_Generator)


class RecipeSchema:
    """The schema of a model, walked by the paths of fields."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.root: Node = _json_schema(model)
        self._definitions: Node = self.root.get("$defs", {})

    def resolve(self, node: Node) -> Node:
        """The node behind references and behind `or null`; what stands beside a reference wins."""
        while True:
            options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
            if "$ref" in node:
                target = self._definitions[node["$ref"].rsplit("/", 1)[1]]
                node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
            elif len(options) == 1:
                node = {**options[0], **{key: value for key, value in node.items() if key != "anyOf"}}
            else:
                return node

    def variants(self, node: Node) -> dict[str, Node]:
        """The sections of a union by their tag; empty if the node is none."""
        mapping = self.resolve(node).get("discriminator", {}).get("mapping", {})
        return {tag: self.resolve({"$ref": reference}) for tag, reference in mapping.items()}

    def discriminator(self, node: Node) -> str:
        """The name of the field that tells a union's sections apart."""
        return str(self.resolve(node)["discriminator"]["propertyName"])

    def child(self, node: Node, key: str | int) -> Node | None:
        """The schema of a field of a section, or of an item of a list."""
        node = self.resolve(node)
        items = node.get("prefixItems", ())
        found: Node | bool | None
        if isinstance(key, int):
            found = items[key] if key < len(items) else node.get("items")
        else:
            others = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
            found = node.get("properties", {}).get(key, others[0])
        return found if isinstance(found, Mapping) else None

    def without_tags(self, location: Path) -> tuple[Path, Node]:
        """Pydantic's location of an error as the path of a field, and that field's schema."""
        node, path = self.root, list[str | int]()
        for key in location:
            if (section := self.variants(node).get(str(key))) is not None:
                node = section
                continue
            path.append(key)
            node = self.child(node, key) or {}
        return tuple(path), node

    def fields(self, node: Node) -> list[str]:
        """The names of a section's fields."""
        return list(self.resolve(node).get("properties", {}))

    def paths(self, name: str) -> list[str]:
        """The dotted paths of every field of that name, wherever it is in the recipe."""
        return sorted(set(self._search(self.root, name, "")))

    def _search(self, node: Node, name: str, prefix: str) -> list[str]:
        found = list[str]()
        for section in self.variants(node).values() or (self.resolve(node),):
            for field, child in section.get("properties", {}).items():
                found += [prefix + field] if field == name else []
                found += self._search(child, name, f"{prefix}{field}.")
        return found

    def choices(self, node: Node) -> list[Any]:
        """The values that a field may have, if they are few; else empty."""
        node = self.resolve(node)
        return list(node.get("enum", [node["const"]] if "const" in node else []))

    def allowed(self, node: Node) -> str:
        """What a field may be, in words: `a number greater than 0, or null`."""
        if any(option.get("type") == "null" for option in node.get("anyOf", ())):
            return f"{self._words(self.resolve(node))}, or null"
        return self._words(self.resolve(node))

    def _words(self, node: Node) -> str:
        if "allowed" in node:
            return str(node["allowed"])
        if variants := self.variants(node):
            return f"a section with `{self.discriminator(node)}` one of {', '.join(variants)}"
        if choices := self.choices(node):
            return f"{'one of ' if len(choices) > 1 else ''}{', '.join(map(flow, choices))}"
        if node.get("type") == "array":
            return self._list_words(node)
        if node.get("type") == "object":
            names = ", ".join(self.fields(node))
            return f"a section with the fields {names}" if names else "a section of `key: value`"
        bounds = [f"{words} {flow(node[key])}" for key, words in _BOUNDS if key in node]
        return " ".join([_TYPES.get(node.get("type", ""), "any value"), " and ".join(bounds)]).strip()

    def _list_words(self, node: Node) -> str:
        items = node.get("prefixItems") or [node.get("items", {})]
        words = list(dict.fromkeys(map(self.allowed, items)))
        count = f"{len(items)} items, each " if "prefixItems" in node else ""
        return f"a list of {count}{', '.join(words)}"
