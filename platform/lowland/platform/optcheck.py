"""`lowland optcheck`: a certificate for anybody's optimizer."""

import ast
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    from lowland.trainers.optcheck.certificate import Certificate
    from lowland.trainers.optcheck.table import Cell


def optcheck(
    name: str,
    *,
    lr: float | None,
    arguments: list[str],
    whole: bool,
    matrices_only: bool,
    out: Path | None,
    console: Console,
) -> bool:
    """Examines an optimizer and prints what was found.

    Args:
        name: `module:Class`, also of the current folder, or a name of lowland's.
        lr: learning rate; None takes that of the table or the class.
        arguments: `name=value`, the value as Python writes it; what is no literal is text.
        whole: whether the class is run through `lowland.optim.Whole`.
        matrices_only: whether it refuses other tensors.
        out: where the certificate goes, if anywhere.
        console: where to print.

    Returns:
        Whether it conforms and is exact everywhere.

    Raises:
        UserError: there is no such optimizer, or it does not take these arguments.
    """
    sys.path.insert(0, str(Path.cwd()))
    from lowland.trainers.optcheck.certificate import WORLDS, certify
    from lowland.trainers.optcheck.processes import Processes
    from lowland.trainers.optcheck.target import Target

    given = dict(map(_argument, arguments)) | ({} if lr is None else {"lr": lr})
    target = Target(name, given, whole, matrices_only)
    _try_to_build(target)
    groups = {world: Processes(world, timeout=600, quiet=True) for world in WORLDS}
    with Progress(console=console, transient=True) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bar = progress.add_task("suite, then trainings", total=None)
        try:
            found = certify(target, groups, lambda done, total: progress.update(bar, completed=done, total=total))
        finally:
            for group in groups.values():
                group.close()
    _print(found, console)
    if out is not None:
        found.write(out)
        console.print(f"certificate: {out}")
    return found.passed


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--argument {text}: NAME=VALUE is needed, for example momentum=0.9")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _try_to_build(target: Any) -> None:
    from lowland.optim.conformance import problems

    subject = target.subject()
    try:
        subject.build(list(problems.parameters(subject).values()))
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{name}={value}" for name, value in subject.arguments.items()) or "no arguments"
        raise UserError(
            f"{target.name} cannot be made with {given}: {error}; say --lr and --argument NAME=VALUE, "
            "and --matrices-only if it takes nothing else"
        ) from error


def _print(found: "Certificate", console: Console) -> None:
    suite = Table("check", "", "", title=f"Conformance of {found.target.name}", title_justify="left")
    for result in found.conformance:
        suite.add_row(result.check.replace("_", " "), _mark(result.passed), result.reason)
    console.print(suite)
    table = Table(
        "sharding", "exact", "fp32", "bf16", title="Distance from the unsharded training", title_justify="left"
    )
    for place, cells in found.cells_by_place().items():
        table.add_row(place, _mark(all(cell.exact for cell in cells)), _worst(cells, False), _worst(cells, True))
    console.print(table)
    console.print("relative to the update, worst tensor, after 20 steps; in brackets what rounding may make of it")
    console.print(f"what it sees: {found.sight.sees}: {found.sight.reason}")
    console.print("[green]exact everywhere[/green]" if found.exact else f"[red]not exact[/red]: {found.reason()}")


def _mark(passed: bool) -> str:
    return "[green]yes[/green]" if passed else "[red]no[/red]"


def _worst(cells: "list[Cell]", bf16: bool) -> str:
    chosen = [cell for cell in cells if cell.case.bf16 == bf16]
    if not chosen:
        return "-"
    worst = max(chosen, key=lambda cell: cell.distance / cell.allowed)
    return "failed" if worst.error else f"{worst.distance:.1e} ({worst.allowed:.1e})"
