"""`lowland schema`."""

from typing import Annotated

import typer


def command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference, for reading, instead of the JSON schema.")
    ] = False,
    spaces: Annotated[bool, typer.Option("--spaces", help="Of search spaces instead of recipes.")] = False,
) -> None:
    """Print the JSON schema of recipes or of search spaces, with the meaning and unit of every field.

    An editor that speaks YAML completes and checks recipes with it: write it to a file and begin the recipe with
    [cyan]# yaml-language-server: $schema=recipe.schema.json[/cyan]

    [bold]Examples[/bold]

    lowland schema > recipe.schema.json

    lowland schema --markdown

    lowland schema --spaces > space.schema.json
    """
    from lowland.platform.recipe import reference as recipes
    from lowland.platform.search import reference as search_spaces

    reference = search_spaces if spaces else recipes
    typer.echo(reference.markdown() if markdown else reference.json_schema(), nl=False)
