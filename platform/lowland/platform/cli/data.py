"""`lowland data`: prepare text for training, and look at what was prepared."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lowland.platform.cli.console import output
from lowland.trainers.errors import DataError

Packing = Literal["split", "fit"]
SplitChoice = Literal["train", "held_out"]

app = typer.Typer(
    help="Prepare text for training, and look at what was prepared.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

_INPUT = "Input"
_RESULT = "Result"
_WORK = "Work"


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files, folders, globs or URIs (s3://, gs://, hf://, ...) with text; or the word [cyan]stdlib[/cyan], "
            "the .py sources of this machine's Python.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", rich_help_panel=_RESULT, show_default=False)],
    sequence_length: Annotated[
        int,
        typer.Option(
            help="Tokens per row: the context that the model is trained with.",
            min=2,
            rich_help_panel=_RESULT,
            show_default=False,
        ),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(help="[cyan]byte[/cyan], or a folder or hub id with a tokenizer.", rich_help_panel=_RESULT),
    ] = "byte",
    packing: Annotated[
        Packing | None,
        typer.Option(
            help="[cyan]split[/cyan] cuts documents where rows end; [cyan]fit[/cyan] keeps each in one row and leaves "
            "out those that are longer. Default: split for plain text, fit for completions and chat.",
            rich_help_panel=_RESULT,
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        str,
        typer.Option(
            metavar="PERCENT",
            help="Part of the documents that is held out for evaluation.",
            rich_help_panel=_RESULT,
        ),
    ] = "1%",
    held_out_source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Hold out this source instead of a part of all. Repeatable.",
            rich_help_panel=_RESULT,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the choice of held-out documents.", min=0, rich_help_panel=_RESULT)
    ] = 0,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Column with plain text. Default: `messages`, else `prompt` and `completion`, else `text`.",
            rich_help_panel=_INPUT,
            show_default=False,
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Files to read in folders, for example '*.py'. Repeatable. "
            "Default: .txt, .md, .jsonl, .parquet, .arrow, .feather, also .gz and .zst.",
            rich_help_panel=_INPUT,
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad row.", rich_help_panel=_INPUT)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace prepared data in --out.", rich_help_panel=_RESULT)
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Ray tasks at a time; 0 works in this process. Default: one per CPU.",
            min=0,
            rich_help_panel=_WORK,
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Ray cluster to work on; --out and local sources must then be on storage that its nodes share.",
            rich_help_panel=_WORK,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Tokenise and pack text into shards that training maps into memory.

    Rows of .jsonl, Parquet and Arrow files hold `text`, or `prompt` and
    `completion` (trained on the completion), or chat `messages` (trained on what
    the assistant says; needs a tokenizer with a chat template).
    Any other file is one document.

    [bold]Examples[/bold]

    lowland data prepare stdlib --out runs/data/stdlib --sequence-length 256

    lowland data prepare notes/ 'logs/*.jsonl.zst' --out data/notes --sequence-length 1024

    lowland data prepare . --include '*.py' --out data/code --sequence-length 2048 --held-out 2%

    lowland data prepare chats.parquet --out data/chats --sequence-length 2048 --tokenizer models/chat
    """
    from lowland.platform.data_report import ByteProgress, print_prepared
    from lowland.platform.preparation import prepare as run
    from lowland.trainers.data.plan import PrepareSettings

    settings = PrepareSettings(
        sources=tuple(sources),
        sequence_length=sequence_length,
        tokenizer=tokenizer,
        held_out_sources=tuple(held_out_source or ()),
        held_out=_fraction(held_out),
        packing=packing,
        text_column=text_column,
        include=tuple(include or ()),
        seed=seed,
        strict=strict,
    )
    with ByteProgress() as progress:
        prepared = run(
            settings, out, overwrite=overwrite, workers=workers, address=address, on_progress=progress.update
        )
    print_prepared(prepared, output())


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Prepared folder or its URI.", show_default=False)],
    rows: Annotated[
        int, typer.Option(min=0, metavar="N", help="Also print the first N rows, decoded, piece by piece.")
    ] = 0,
    split: Annotated[SplitChoice, typer.Option(help="The split whose rows are printed.")] = "train",
) -> None:
    """Show what a prepared folder holds.

    Splits, sources, bad rows, document lengths, and the loss of a unigram model, which
    knows only how frequent each token is: any training must fall far below it.

    [bold]Examples[/bold]

    lowland data inspect runs/data/stdlib

    lowland data inspect runs/data/stdlib --rows 2 --split held_out
    """
    from lowland.platform.data_report import print_folder, print_rows
    from lowland.trainers.data.split import PackedSplit
    from lowland.trainers.data.store import local_folder

    local = local_folder(folder)
    print_folder(local, output())
    if rows:
        print_rows(PackedSplit.open(local, split), rows, output())


def _fraction(text: str) -> float:
    """`1%` or `0.01`."""
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise DataError(f"--held-out {text}: write a percentage or a fraction, for example 1% or 0.01") from None
