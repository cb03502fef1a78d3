"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated, Any

import typer


def option(text: str, panel: str, *, flag: str = "", metavar: str | None = None, shown: bool | str = False) -> Any:
    """An option: its help, the group it stands in, and the default to show, True for the value itself."""
    names = [flag] if flag else []
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, show_default=shown)


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    option(
        "Change a field of the recipe, by its dotted name; the value is read as YAML. Repeatable.",
        "Recipe",
        flag="--set",
        metavar="FIELD=VALUE",
    ),
]
Storage = Annotated[str, typer.Option("--storage", help="Folder or URI that holds run folders.")]
Address = Annotated[
    str | None,
    option(
        "Ray cluster to join; without it the one of RAY_ADDRESS, else one on this machine.", "Run", metavar="HOST:PORT"
    ),
]
Parallel = Annotated[str, option("Trainings at a time; auto fills the cluster.", "Run", metavar="auto|N", shown=True)]
Budget = Annotated[
    str | None,
    option(
        "What a search may spend: gpu-hours, cpu-hours, epochs, seconds, tokens or trainings.",
        "Search",
        metavar="40gpu-hours",
    ),
]
