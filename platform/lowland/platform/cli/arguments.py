"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field of the recipe, by its dotted name; the value is read as YAML. Repeatable.",
        rich_help_panel="Recipe",
        show_default=False,
    ),
]
Storage = Annotated[str, typer.Option("--storage", help="Folder or URI that holds run folders.")]
