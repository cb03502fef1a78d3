"""`lowland optcheck`."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    optimizer: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:CLASS|NAME", help="A torch optimizer's class, or a name of lowland's.", show_default=False
        ),
    ],
    lr: Annotated[
        float | None, typer.Option(min=0, help="Learning rate that suits a loss of order one.", show_default=False)
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="An argument; as Python writes the value. Repeatable.", show_default=False
        ),
    ] = None,
    sees: Annotated[
        Literal["fragments", "tensors"],
        typer.Option(help="Step what the engine hands over, or whole tensors through lowland.optim.Whole."),
    ] = "fragments",
    matrices_only: Annotated[
        bool, typer.Option("--matrices-only", help="The optimizer refuses tensors that are not matrices.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the certificate, for a recipe.", show_default=False)
    ] = None,
) -> None:
    """Find out whether an optimizer computes the same however a training is sharded.

    Runs the conformance suite and short trainings at ZeRO 0 to 3 with one and two processes and on FSDP2, on
    this machine's CPU, and compares each with the unsharded one. Exit code 0 if all agree, 1 if not, 2 if there is
    no such optimizer. Classes are also looked for in the current folder.

    [bold]Examples[/bold]

    lowland optcheck torch.optim:AdamW --lr 1e-2

    lowland optcheck mine:Muon --lr 0.02 --argument momentum=0.9 --sees tensors --out muon.json
    """
    from lowland.platform.cli.console import output
    from lowland.platform.optcheck import optcheck

    passed = optcheck(
        optimizer,
        lr=lr,
        arguments=argument or [],
        whole=sees == "tensors",
        matrices_only=matrices_only,
        out=out,
        console=output(),
    )
    raise typer.Exit(0 if passed else 1)
