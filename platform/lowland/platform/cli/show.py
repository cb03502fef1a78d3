"""`lowland show`."""

from typing import Annotated

import typer

from lowland.platform.cli.arguments import Storage


def command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs.", show_default=False)],
    storage: Storage = "runs",
) -> None:
    """Show how a run stands, or several beside each other.

    Of one run: status, checkpoints, latest metrics, and how to go on. Of several: a table of what they
    reached, with the loss of a unigram model, which knows only how frequent each token is.

    [bold]Examples[/bold]

    lowland show stdlib-adamw

    lowland show stdlib-adamw stdlib-adatamw

    lowland show llama-1b --storage s3://bucket/runs
    """
    from lowland.platform.cli.console import output
    from lowland.platform.show import show, show_side_by_side

    if len(runs) == 1:
        show(runs[0], storage, output())
    else:
        show_side_by_side(runs, storage, output())
