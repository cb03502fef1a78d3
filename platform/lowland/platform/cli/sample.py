"""`lowland sample`."""

from typing import Annotated

import typer

from lowland.platform.cli.arguments import Storage


def command(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN|FOLDER", help="Name of a run, or a folder with a model.", show_default=False),
    ],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="New tokens at most; a document may end sooner.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw: the same seed gives the same text.")] = 0,
    storage: Storage = "runs",
) -> None:
    """Print text that a trained model continues a prompt with.

    The model is the one that a run exported at its end, or any causal language model
    that transformers can load from a folder.

    [bold]Examples[/bold]

    lowland sample stdlib-adamw --prompt "def " --tokens 100

    lowland sample runs/stdlib-adamw/model --temperature 0
    """
    from lowland.platform.cli.console import output
    from lowland.platform.sample import Sampling, sample

    sample(model, storage, Sampling(prompt, tokens, temperature, seed), output())
