"""The reference of recipes, made from their models: JSON schema for editors, Markdown for people."""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files

from lowland.platform.recipe.mistakes import flow
from lowland.platform.recipe.model import RECIPES, CausalLMRecipe, ImageClassificationRecipe
from lowland.platform.recipe.schema import Node, RecipeSchema
from lowland.trainers.recipe.optimizers.mixed import INHERITED

IMAGES = "image-classification"


def json_schema() -> str:
    """The JSON schema of a recipe file, with a final newline."""
    roots = {name: RecipeSchema(model).root for name, model in RECIPES.items()}
    definitions: dict[str, Node] = {}
    for name, root in roots.items():
        definitions |= root["$defs"] | {name: {key: value for key, value in root.items() if key != "$defs"}}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "if": {"properties": {"task": {"const": IMAGES}}, "required": ["task"]},
        "then": {"$ref": f"#/$defs/{IMAGES}"},
        "else": {"$ref": "#/$defs/causal-lm"},
        "$defs": definitions | _optimizers_of_rules(definitions),
    }
    return json.dumps(schema, indent=2) + "\n"


def _optimizers_of_rules(definitions: Mapping[str, Node]) -> dict[str, Node]:
    """The rule of `mixed` with definitions of its own: its optimizer may leave out what `mixed` gives it."""
    found, rule = dict[str, Node](), json.dumps(definitions["Rule"])
    for reference in definitions["Rule"]["properties"]["optimizer"]["discriminator"]["mapping"].values():
        name = reference.rsplit("/", 1)[1]
        required = [field for field in definitions[name]["required"] if field not in INHERITED]
        found[f"{name}OfRule"] = {**definitions[name], "required": required}
        rule = rule.replace(f'"{reference}"', f'"{reference}OfRule"')
    return found | {"Rule": json.loads(rule)}


def markdown() -> str:
    """The reference of recipes, as `docs/recipes.md` holds it: language models, and how image classifiers differ."""
    schema, images = RecipeSchema(CausalLMRecipe), RecipeSchema(ImageClassificationRecipe)
    introduction = files("lowland.platform.recipe").joinpath("reference.md").read_text(encoding="utf-8")
    top, sections = _parts(schema)
    lines = [introduction, "## The top of a recipe", "", *table(schema, schema.root, top)]
    for name, node in sections.items():
        lines += ["", f"## `{name}`", "", *_section(schema, name, node)]
    lines += ["", "## Image classification", "", _description(images, images.child(images.root, "task") or {}), ""]
    lines += ["With `task: image-classification` these sections are other ones; all others are as above.", ""]
    lines += table(images, images.root, ["task"])
    for name, node in _parts(images)[1].items():
        if images.resolve(node) != schema.resolve(sections.get(name, {})):
            lines += ["", f"### Images: `{name}`", "", *_section(images, name, node)]
    for name, node in _lists(images).items():
        lines += ["", f"### Images: `{name}`", "", *_list(images, name, node)]
    return "\n".join(lines) + "\n"


def _parts(schema: RecipeSchema) -> tuple[list[str], dict[str, Node]]:
    """The fields at the top of a recipe, and its sections."""
    fields = {name: schema.child(schema.root, name) or {} for name in schema.fields(schema.root)}
    sections = {name: node for name, node in fields.items() if schema.variants(node) or schema.fields(node)}
    return [name for name in fields if name not in sections], sections


def _lists(schema: RecipeSchema) -> dict[str, Node]:
    """The fields at the top of a recipe that are lists of sections told apart by a name."""
    fields = {name: schema.child(schema.root, name) or {} for name in schema.fields(schema.root)}
    return {name: node for name, node in fields.items() if schema.variants(schema.child(node, 0) or {})}


def _list(schema: RecipeSchema, name: str, node: Node) -> Iterator[str]:
    item = schema.child(node, 0) or {}
    tags = ", ".join(f"`{tag}`" for tag in schema.variants(item))
    yield f"{_description(schema, node)} A list; `{schema.discriminator(item)}` of each is one of {tags}."
    yield from _variants(schema, f"{name}.N", item)


def _section(schema: RecipeSchema, name: str, node: Node) -> Iterator[str]:
    variants = schema.variants(node)
    if not variants:
        yield from (_description(schema, node), "", *table(schema, node, schema.fields(node)))
        return
    discriminator = schema.discriminator(node)
    tags = ", ".join(f"`{tag}`" for tag in variants)
    yield f"{_description(schema, node)} `{name}.{discriminator}` is one of {tags}."
    if (default := schema.resolve(node).get("default")) is not None:
        yield f"Without the section: `{flow(default)}`."
    yield from _variants(schema, name, node)


def _variants(schema: RecipeSchema, name: str, node: Node) -> Iterator[str]:
    """Each section of a union, under a heading of its own."""
    discriminator = schema.discriminator(node)
    for tag, section in schema.variants(node).items():
        fields = [field for field in schema.fields(section) if field != discriminator]
        yield from ("", f"### `{name}.{discriminator}: {tag}`", "", _description(schema, section), "")
        yield from table(schema, section, fields)


def table(schema: RecipeSchema, section: Node, names: list[str]) -> Iterator[str]:
    """The fields of a section, a row each."""
    required = schema.resolve(section).get("required", ())
    yield from ("| Field | May be | Default | Meaning |", "|---|---|---|---|")
    for name in names:
        node = schema.child(section, name) or {}
        default = "required" if name in required else f"`{flow(schema.resolve(node).get('default'))}`"
        cells = (f"`{name}`", schema.allowed(node), default, _description(schema, node))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _description(schema: RecipeSchema, node: Node) -> str:
    return " ".join(str(schema.resolve(node).get("description", "")).split())
