"""`lowland compare`."""

from pathlib import Path
from typing import Annotated

import typer

from lowland.platform.cli.arguments import Overrides


def command(
    recipes: Annotated[
        list[Path],
        typer.Argument(
            metavar="A.yaml B.yaml ...", help="The recipes; the others are compared with the first.", show_default=False
        ),
    ],
    optimizers: Annotated[
        str | None,
        typer.Option(
            metavar="adamw,adatamw,adamw+sam",
            help="Compare optimizers on one recipe, each over its own search space.",
            rich_help_panel="Comparison",
            show_default=False,
        ),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPACE|ARM=SPACE",
            help="Search space, of all or of one arm: one that comes with lowland, a YAML file, or auto. Repeatable.",
            rich_help_panel="Comparison",
            show_default="auto",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trials of each arm at most.", rich_help_panel="Comparison", show_default=False),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="10gpu-hours",
            help="What each arm's tuning may spend: gpu-hours, cpu-hours, epochs, seconds, tokens or trainings.",
            rich_help_panel="Comparison",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=2, help="Trainings of each winner, each with another seed.", rich_help_panel="Comparison")
    ] = 5,
    metric: Annotated[str, typer.Option(help="What is compared.", rich_help_panel="Comparison")] = "eval/loss",
    direction: Annotated[
        str, typer.Option(metavar="minimize|maximize", help="Where it is to go.", rich_help_panel="Comparison")
    ] = "minimize",
    sampler: Annotated[
        str, typer.Option(help="Proposes parameters; see lowland tune.", rich_help_panel="Tuning")
    ] = "multi-fidelity",
    policy: Annotated[
        str, typer.Option(help="How far trials are trained; see lowland tune.", rich_help_panel="Tuning")
    ] = "promotion",
    seed: Annotated[int, typer.Option(help="Of the samplers.", rich_help_panel="Tuning")] = 0,
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the comparison and of its folder, instead of the arms' names.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    parallel: Annotated[
        str, typer.Option(metavar="auto|N", help="Trainings at a time; auto fills the cluster.", rich_help_panel="Run")
    ] = "auto",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with this comparison; nothing is trained twice.", rich_help_panel="Run"),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Ray cluster to join; without it the one of RAY_ADDRESS, else one on this machine.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
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
