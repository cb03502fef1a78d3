"""`lowland estimate`."""

from lowland.platform.cli.arguments import Overrides, RecipeFile


def command(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Say what a recipe would need, without starting anything.

    Parameters, memory per GPU by part at every ZeRO stage, tokens and steps, FLOPs, and a time. A data set of images
    of the hub is first copied into the hub's cache, whole.

    [bold]Examples[/bold]

    lowland estimate recipes/stdlib-adamw.yaml

    lowland estimate recipe.yaml --set sharding.stage=3 --set scaling.workers=8
    """
    from lowland.platform.cli.console import output
    from lowland.platform.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])

    from lowland.platform.estimate import print_estimate

    print_estimate(loaded, output())
