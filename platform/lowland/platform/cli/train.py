"""`lowland train`."""

import json
from typing import Annotated

import typer

from lowland.platform.cli.arguments import Address, Overrides, RecipeFile


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the run, instead of the recipe's.", rich_help_panel="Recipe", show_default=False),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|RUN",
            help="auto: start, or continue an unfinished run of this name and this very recipe; never: refuse a name "
            "that exists; RUN: continue that run, with whatever the recipe changes.",
            rich_help_panel="Run",
        ),
    ] = "never",
    address: Address = None,
) -> None:
    """Train what a recipe describes.

    The recipe is checked before anything starts. Ctrl-C saves a checkpoint and says how to go on.

    [bold]Examples[/bold]

    lowland train recipes/stdlib-adamw.yaml

    lowland train recipes/stdlib-adamw.yaml --set optimizer.lr=1e-3 --set scaling.workers=4 --name lr-1e-3

    lowland train recipe.yaml --address ray-head:6379
    """
    from lowland.platform.cli.console import output
    from lowland.platform.recipe import load_recipe

    # As JSON, so that a name like 1e4 stays text.
    named = [f"name={json.dumps(name)}"] if name is not None else []
    loaded = load_recipe(recipe, [*(overrides or []), *named])

    from lowland.platform.launch import train

    outcome = train(loaded, resume=resume, address=address, console=output())
    raise typer.Exit(outcome.exit_code)
