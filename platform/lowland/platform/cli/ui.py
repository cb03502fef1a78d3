"""`lowland ui`."""

from typing import Annotated

import typer


def command(
    storage: Annotated[
        str | None,
        typer.Option(help="Folder that holds run folders and their mlflow.db.", show_default=False),
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow tracking URI; without it and --storage, MLFLOW_TRACKING_URI, else the store of `runs`.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1; if it is taken, the next.")] = 5000,
) -> None:
    """Open MLflow's pages on the runs, for this machine only.

    [bold]Examples[/bold]

    lowland ui

    lowland ui --storage /shared/runs --port 5001
    """
    from lowland.platform.cli.console import output
    from lowland.platform.tracking.ui import find_store, open_ui

    open_ui(uri or find_store(storage), port, output())
