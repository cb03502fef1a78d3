"""`lowland study`: what searches found."""

from pathlib import Path
from typing import Annotated

import typer

from lowland.platform.cli.arguments import Storage
from lowland.platform.cli.console import output

app = typer.Typer(
    help="What searches found, from their storage; a search that runs may be looked at too.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.", show_default=False)]


@app.command("list")
def list_(storage: Storage = "runs") -> None:
    """List the studies of a storage folder.

    [bold]Examples[/bold]

    lowland study list --storage /shared/runs
    """
    from lowland.platform.search.leaderboard import print_studies
    from lowland.platform.search.results import read_study
    from lowland.platform.search.setting import study_names
    from lowland.trainers.errors import UserError

    found, damaged = [], []
    for name in study_names(storage):
        try:
            found.append(read_study(storage, name))
        except UserError as error:
            damaged.append(f"{name}: {error}")
    if found:
        print_studies(found, output())
    elif not damaged:
        output().print(f"No studies in {storage}.", markup=False)
    for line in damaged:
        output().print(line, markup=False, soft_wrap=True)


@app.command()
def show(
    name: Name,
    storage: Storage = "runs",
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="Write the best trial's recipe, for lowland train.", show_default=False),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a page of plots there.", show_default=False)
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option(help="Whose recipe is shown or written, instead of the best one's.", show_default=False),
    ] = None,
) -> None:
    """Show what a search found.

    The best trials and what differs between them, how much each parameter decides and how sure that is, what became
    of all trials, what was spent, and the best recipe.

    [bold]Examples[/bold]

    lowland study show stdlib-adamw

    lowland study show stdlib-adamw --recipe best.yaml --plots plots
    """
    from lowland.platform.search.importance import importances
    from lowland.platform.search.leaderboard import print_recipe, print_study
    from lowland.platform.search.report import write_plots, write_recipe
    from lowland.platform.search.results import read_study

    found, console = read_study(storage, name), output()
    print_study(found, importances(found), console)
    if recipe is None:
        print_recipe(found, console, trial)
    else:
        write_recipe(found, recipe, trial)
        console.print(f"\nRecipe: {recipe}", markup=False)
    if plots is not None:
        console.print(f"\nPlots: {write_plots(found, plots)}", markup=False)


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option(metavar="FILE.parquet|FILE.csv", help="File to write.", show_default=False)],
    storage: Storage = "runs",
) -> None:
    """Write a study as a table: a row for each trial and each place at which it was measured.

    [bold]Examples[/bold]

    lowland study export stdlib-adamw --out trials.parquet
    """
    from lowland.platform.search.export import export as write
    from lowland.platform.search.results import read_study

    rows = write(read_study(storage, name), out)
    output().print(f"{out}: {rows} rows", markup=False)


@app.command()
def resume(
    name: Name,
    storage: Storage = "runs",
    trials: Annotated[int | None, typer.Option(min=1, help="In place of what it had.", show_default=False)] = None,
    budget: Annotated[str | None, typer.Option(help="In place of what it had.", show_default=False)] = None,
    parallel: Annotated[str, typer.Option(metavar="auto|N", help="Trials at a time.")] = "auto",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to join.", show_default=False)
    ] = None,
) -> None:
    """Go on with a search that was stopped or died, from its storage.

    [bold]Examples[/bold]

    lowland study resume stdlib-adamw --trials 80
    """
    from lowland.platform.search.start import changed
    from lowland.platform.search.tune import tune

    setting = changed(storage, name, trials=trials, budget=budget, parallel=parallel)
    raise typer.Exit(tune(setting, address=address, console=output()).exit_code)


@app.command()
def stop(name: Name, storage: Storage = "runs") -> None:
    """Let a running search save its trials and end, wherever it runs.

    [bold]Examples[/bold]

    lowland study stop stdlib-adamw --storage /shared/runs
    """
    from lowland.platform.search.setting import STOP, existing_study

    setting = existing_study(storage, name)
    if setting.status != "running":
        output().print(f"Study {name} does not run ({setting.status}).", markup=False)
        return
    if setting.driver is not None and setting.abandoned:
        output().print(f"Study {name} does not run: process {setting.driver.pid}, which led it, is gone.", markup=False)
        return
    (setting.folder / STOP).touch()
    output().print(f"Study {name} ends after the steps that its trials are at.", markup=False)
