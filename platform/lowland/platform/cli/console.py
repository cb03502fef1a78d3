"""How commands write."""

from rich.console import Console
from rich.text import Text


def output() -> Console:
    """Standard output; lines are not cut when it is piped, and nothing is coloured that we did not colour."""
    return Console(highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """The message on standard error; several mistakes begin on a line of their own, as editors expect places."""
    start = "\n" if "\n" in message else ""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), start, message))
