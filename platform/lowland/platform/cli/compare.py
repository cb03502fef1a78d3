"""`lowland compare`."""

from pathlib import Path
from typing import Annotated

import typer

from lowland.platform.cli.arguments import Address, Budget, Overrides, Parallel, option

_COMPARISON, _TUNING = "Comparison", "Search"


def command(
    recipes: Annotated[
        list[Path],
        typer.Argument(
            metavar="A.yaml B.yaml ...", help="The recipes; the others are compared with the first.", show_default=False
        ),
    ],
    optimizers: Annotated[
        str | None,
        option(
            "Compare optimizers on one recipe, each over its own search space.",
            _COMPARISON,
            metavar="adamw,adatamw,adamw+sam",
        ),
    ] = None,
    space: Annotated[
        list[str] | None,
        option(
            "Search space, of all or of one arm: one that comes with lowland, a YAML file, or auto. Repeatable.",
            _COMPARISON,
            metavar="SPACE|ARM=SPACE",
            shown="auto",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trials of each arm at most.", rich_help_panel=_COMPARISON, show_default=False),
    ] = None,
    budget: Budget = None,
    seeds: Annotated[
        int, typer.Option(min=2, help="Trainings of each winner, each with another seed.", rich_help_panel=_COMPARISON)
    ] = 5,
    metric: Annotated[str, option("What is compared.", _COMPARISON, shown=True)] = "eval/loss",
    direction: Annotated[
        str, option("Where it is to go.", _COMPARISON, metavar="minimize|maximize", shown=True)
    ] = "minimize",
    sampler: Annotated[str, option("Proposes parameters; see lowland tune.", _TUNING, shown=True)] = "multi-fidelity",
    policy: Annotated[str, option("How far trials are trained; see lowland tune.", _TUNING, shown=True)] = "promotion",
    seed: Annotated[int, option("Of the samplers.", _TUNING, shown=True)] = 0,
    overrides: Overrides = None,
    name: Annotated[
        str | None, option("Name of the comparison and of its folder, instead of the arms' names.", "Run")
    ] = None,
    parallel: Parallel = "auto",
    resume: Annotated[
        bool, option("Go on with this comparison; nothing is trained twice.", "Run", flag="--resume")
    ] = False,
    address: Address = None,
) -> None:
    """Compare recipes or optimizers at an equal tuning budget, over seeds.

    Each is tuned alike; each winner is trained with several seeds, on held-out text that did not choose it. The result
    is a table with 95 % intervals and paired tests, and a page of plots. Ctrl-C saves all and says how to go on.

    [bold]Examples[/bold]

    lowland compare adamw.yaml tam.yaml --trials 20 --seeds 5

    lowland compare recipe.yaml --optimizers adamw,adatamw,adamw+sam --space wsd --budget 10gpu-hours
    """
    from lowland.platform.cli.console import output
    from lowland.platform.comparison.start import begin
    from lowland.platform.recipe import load_recipe

    comparison = begin(
        [load_recipe(file, overrides or []) for file in recipes],
        space or ["auto"],
        optimizers=[part.strip() for part in optimizers.split(",")] if optimizers is not None else (),
        name=name,
        seeds=seeds,
        metric=metric,
        direction=direction,
        trials=trials,
        budget=budget,
        parallel=parallel,
        sampler=sampler,
        policy=policy,
        seed=seed,
        resume=resume,
    )
    from lowland.platform.comparison.compare import compare

    raise typer.Exit(compare(comparison, address=address, console=output()).exit_code)
