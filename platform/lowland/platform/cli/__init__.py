"""The `lowland` command: each file reads one command's arguments and makes one call into the platform.

Exit codes: 0 done, 1 a failure, 2 the user's mistake, 130 interrupted.
Only typer and rich are imported here; what a command needs besides, it imports when it runs.
"""

import sys
import traceback
from importlib.metadata import version
from typing import Annotated

import typer

from lowland.platform.cli import (
    compare,
    data,
    estimate,
    landscape,
    optcheck,
    sample,
    schema,
    show,
    study,
    train,
    tune,
    ui,
)
from lowland.platform.cli.console import print_error
from lowland.trainers.errors import LowlandError, UserError

_RUNNING = "Training"
_LOOKING = "Looking at runs"
_WRITING = "Writing recipes"

app = typer.Typer(
    name="lowland",
    help="Trains neural networks on a Ray cluster with optimizers that look for flat minima.",
    epilog="Start with: lowland data prepare stdlib --out runs/data/stdlib --sequence-length 256, "
    "then: lowland train recipes/stdlib-adamw.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", rich_help_panel=_RUNNING)(train.command)
app.command("tune", rich_help_panel=_RUNNING)(tune.command)
app.command("compare", rich_help_panel=_RUNNING)(compare.command)
app.command("estimate", rich_help_panel=_RUNNING)(estimate.command)
app.add_typer(data.app, name="data", rich_help_panel=_RUNNING)
app.command("show", rich_help_panel=_LOOKING)(show.command)
app.command("sample", rich_help_panel=_LOOKING)(sample.command)
app.command("landscape", rich_help_panel=_LOOKING)(landscape.command)
app.add_typer(study.app, name="study", rich_help_panel=_LOOKING)
app.command("ui", rich_help_panel=_LOOKING)(ui.command)
app.command("optcheck", rich_help_panel=_WRITING)(optcheck.command)
app.command("schema", rich_help_panel=_WRITING)(schema.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lowland {version('lowland')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    try:
        app()
    except LowlandError as error:
        print_error(str(error))
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        print_error("this is a defect of lowland; please report it with the lines above")
        sys.exit(1)
