"""`lowland landscape`."""

from typing import Annotated

import typer

from lowland.platform.cli.arguments import Overrides, Storage


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run with a checkpoint.", show_default=False)],
    other: Annotated[
        str | None,
        typer.Option("--with", metavar="RUN", help="Look at the line to the weights of this run instead."),
    ] = None,
    directions: Annotated[int, typer.Option(min=1, max=2, help="Random directions: 1 for a line, 2 for a plane.")] = 1,
    points: Annotated[int, typer.Option(min=2, help="Points on each axis; odd, except with --with.")] = 11,
    span: Annotated[float, typer.Option(min=0.0001, help="Distance both ways, in norms of the filters.")] = 1.0,
    step: Annotated[int | None, typer.Option(min=0, help="Step of the checkpoint; the newest without it.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the directions, and of the order of matching.")] = 0,
    overrides: Overrides = None,
    storage: Storage = "runs",
) -> None:
    """Draw the held-out loss around a run's weights, or between the weights of two runs.

    Around a run: random directions whose filters are as long as the weights' own. Between two runs:
    the straight line, as the weights are and with the second's units permuted to match the first's.
    Picture and values go to landscape/ in the run folder, and to the artifacts of the run in MLflow.

    [bold]Examples[/bold]

    lowland landscape stdlib-adamw

    lowland landscape stdlib-adamw --directions 2 --set evaluation.max_sequences=64

    lowland landscape stdlib-adamw --with stdlib-adatamw
    """
    from lowland.platform.cli.console import output
    from lowland.platform.landscape import Look, landscape

    landscape(run, other, storage, Look(directions, points, span, seed, step, overrides or ()), output())
