"""`lowland schema`."""

from typing import Annotated

import typer


def command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the recipe reference instead of the JSON schema.")
    ] = False,
) -> None:
    """Print the JSON schema of recipes, with the meaning and unit of every field.

    An editor that speaks YAML completes and checks recipes with it: write it to a file and begin the recipe with
    [cyan]# yaml-language-server: $schema=recipe.schema.json[/cyan]

    [bold]Examples[/bold]

    lowland schema > recipe.schema.json

    lowland schema --markdown
    """
    from lowland.platform.recipe import reference

    typer.echo(reference.markdown() if markdown else reference.json_schema(), nl=False)
