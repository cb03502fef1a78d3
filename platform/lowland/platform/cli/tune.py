"""`lowland tune`."""

import json
from typing import Annotated

import typer

from lowland.platform.cli.arguments import Overrides, RecipeFile


def command(
    recipe: RecipeFile,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPACE",
            help="Search space: one that comes with lowland, a YAML file, or auto. Repeatable.",
            rich_help_panel="Search",
            show_default="auto",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trials that begin at most.", rich_help_panel="Search", show_default=False),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="40gpu-hours",
            help="What may be spent: gpu-hours, cpu-hours, epochs, seconds, tokens or trainings.",
            rich_help_panel="Search",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC[:maximize]",
            help="What is compared: a metric of trainings, or gpu-hours, cpu-hours or seconds of a trial. Repeatable: "
            "with several the search is for the best compromises.",
            rich_help_panel="Search",
            show_default="eval/loss",
        ),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(
            metavar="minimize|maximize",
            help="Where a single metric is to go.",
            rich_help_panel="Search",
            show_default="minimize",
        ),
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'METRIC <= VALUE'",
            help="What trials must keep, as 'perf/gpu_memory_gib <= 70'; others are never the best. Repeatable.",
            rich_help_panel="Search",
            show_default=False,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Proposes parameters: multi-fidelity, random, quasi-random, tpe, nsga2, ...",
            rich_help_panel="Search",
            show_default="multi-fidelity; tpe with several metrics",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="How far trials are trained: promotion, stopping, median, hyperband, fixed, none (whole), or pbt (a "
            "population of --trials members, in which copies of the best replace the worst).",
            rich_help_panel="Search",
            show_default="promotion; none with several metrics",
        ),
    ] = None,
    intervals: Annotated[
        int, typer.Option(help="Parts of a training after which --policy pbt compares.", rich_help_panel="Search")
    ] = 8,
    perturb: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PARAMETER",
            help="What copies of --policy pbt change; by default all that may change during a training. Repeatable.",
            rich_help_panel="Search",
            show_default=False,
        ),
    ] = None,
    parallel: Annotated[
        str, typer.Option(metavar="auto|N", help="Trials at a time; auto fills the cluster.", rich_help_panel="Run")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the sampler.", rich_help_panel="Search")] = 0,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STUDY|mlflow:RUNS",
            help="Begin with the trainings of an earlier study (its name or folder), of an MLflow experiment "
            "(mlflow:NAME) or run (mlflow:ID): those that fit are trials, and cost nothing. Repeatable.",
            rich_help_panel="Search",
            show_default=False,
        ),
    ] = None,
    related: Annotated[
        bool,
        typer.Option(
            "--related",
            help="The trainings of --warm-start are of another task: they only tell where to look first.",
            rich_help_panel="Search",
        ),
    ] = False,
    known_lr: Annotated[
        str | None,
        typer.Option(
            "--known-lr",
            metavar="2e-3@width=256,tokens=1e9",
            help="A learning rate that was good for another width, batch (tokens a step) or number of tokens: rules "
            "move it to this recipe, and it is where to look first.",
            rich_help_panel="Search",
            show_default=False,
        ),
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(
            metavar="2.5usd",
            help="Of a GPU-hour (a CPU-hour if trainings hold no GPUs); --budget may then be in this currency.",
            rich_help_panel="Search",
            show_default=False,
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FILE",
            help="Where the trials lie, instead of a journal in the study's folder: sqlite:///trials.db, "
            "postgresql://user@host/name, or the file of a journal.",
            envvar="LOWLAND_DATABASE",
            show_envvar=True,
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the study, instead of the recipe's.", rich_help_panel="Recipe", show_default=False),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the study of this name as its folder has it; --trials and --budget replace what it had.",
            rich_help_panel="Run",
        ),
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
    """Search for better values of a recipe's fields.

    Each trial is a training; most of them end early. Ctrl-C saves all trials and says how to go on.

    [bold]Examples[/bold]

    lowland tune recipes/stdlib-adamw.yaml --space adamw --trials 40

    lowland tune recipe.yaml --space auto --space mine.yaml --budget 40gpu-hours --address ray-head:6379
    """
    from lowland.platform.cli.console import output
    from lowland.platform.recipe import load_recipe
    from lowland.platform.search.same import refuse_another
    from lowland.platform.search.start import begin, changed
    from lowland.platform.search.tune import tune

    named = [f"name={json.dumps(name)}"] if name is not None else []
    loaded = load_recipe(recipe, [*(overrides or []), *named])
    if resume:
        setting = changed(loaded.storage, loaded.name, trials=trials, budget=budget, parallel=parallel)
        refuse_another(
            setting, loaded, spaces=space, metric=metric, direction=direction, sampler=sampler, policy=policy
        )
    else:
        setting = begin(
            loaded,
            space or ["auto"],
            metric=metric or "eval/loss",
            direction=direction or "minimize",
            trials=trials,
            budget=budget,
            parallel=parallel,
            sampler=sampler,
            policy=policy,
            seed=seed,
            database=database,
            price=price,
            warm_start=warm_start or [],
            related=related,
            constraints=constraint or [],
            intervals=intervals,
            perturb=perturb or [],
            known_lr=known_lr,
        )
    raise typer.Exit(tune(setting, address=address, console=output()).exit_code)
