"""What a running training shows: a live bar on a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from lowland.trainers.monitor import Progress

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines at most often, except at each `PLAIN_FRACTION`."""
PLAIN_FRACTION = 0.05
FASTEST_PLAIN_SECONDS = 1.0
"""A training of a second or two prints no twenty lines."""
REDRAWS_PER_SECOND = 4


class ProgressDisplay:
    """Shows one training on a console; a context manager, used by the driver.

    Args:
        console: where to draw; a bar if it is a terminal, otherwise plain lines.
        clock: seconds that only go forward.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._eta = Eta(clock)
        self._plain = PlainSchedule(clock)
        live = console.is_terminal and not console.is_dumb_terminal
        self._bar: Bar | None = _bar(console) if live else None
        self._task = TaskID(0)
        self._latest: Progress | None = None

    def __enter__(self) -> "ProgressDisplay":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, loss="", rate="", eta="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._latest is not None and self._plain.behind(self._latest):
            self._print(self._latest)  # the last state is always told

    def update(self, progress: Progress) -> None:
        """Shows where the training is; as cheap and as often as wanted."""
        self._latest = progress
        self._eta.update(progress)
        if self._bar is not None:
            fields = self._fields(progress)
            self._bar.update(
                self._task,
                completed=progress.step,
                total=progress.total_steps,
                description=progress.phase,
                loss=fields["loss"],
                rate=fields["rate"],
                eta=fields["eta"],
            )
        elif self._plain.due(progress):
            self._print(progress)

    def event(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        self._console.print(Text(text), soft_wrap=True)

    def _fields(self, progress: Progress) -> dict[str, str]:
        loss = f"loss {progress.loss:.4f}" if progress.loss is not None else ""
        rate = progress.tokens_per_second
        seconds = self._eta.seconds()
        return {
            "loss": loss,
            "rate": f"{format_count(rate)} {progress.unit}/s" if rate is not None else "",
            "eta": f"ETA {format_seconds(seconds)}" if seconds is not None else "",
        }

    def _print(self, progress: Progress) -> None:
        self._plain.printed(progress)
        fields = self._fields(progress)
        percent = 100 * progress.step // max(progress.total_steps, 1)
        parts = [f"step {progress.step}/{progress.total_steps} ({percent}%)", fields["loss"], fields["rate"]]
        parts += [fields["eta"], progress.phase if progress.phase != "training" else ""]
        self._console.print(Text("  ".join(part for part in parts if part)), soft_wrap=True)


class Eta:
    """Time left, from the pace so far of this attempt: steps done before it cost it nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._now: tuple[int, float] | None = None
        self._total = 0

    def update(self, progress: Progress) -> None:
        """Takes a state of the training; a step that goes back (a restart) starts the count anew."""
        here = (progress.step, self._clock())
        if self._first is None or (self._now is not None and progress.step < self._now[0]):
            self._first = here
        self._now = here
        self._total = progress.total_steps

    def seconds(self) -> float | None:
        """Seconds left; None before the second step."""
        if self._first is None or self._now is None or self._now[0] == self._first[0]:
            return None
        pace = (self._now[1] - self._first[1]) / (self._now[0] - self._first[0])
        return pace * max(self._total - self._now[0], 0)


class PlainSchedule:
    """When a plain line is due: every ten seconds or twentieth of the training, but not twice in a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._printed: Progress | None = None
        self._when = 0.0

    def due(self, progress: Progress) -> bool:
        """Whether to print now."""
        if self._printed is None:
            return True
        if not self.behind(progress):
            return False
        waited = self._clock() - self._when
        further = abs(progress.step - self._printed.step) >= max(1, round(progress.total_steps * PLAIN_FRACTION))
        return waited >= PLAIN_SECONDS or (waited >= FASTEST_PLAIN_SECONDS and further)

    def behind(self, progress: Progress) -> bool:
        """Whether the last line printed said something else."""
        return self._printed is None or (progress.step, progress.phase) != (self._printed.step, self._printed.phase)

    def printed(self, progress: Progress) -> None:
        """Notes that a line was printed."""
        self._printed = progress
        self._when = self._clock()


@dataclass(frozen=True)
class SummaryRow:
    """What a training reached."""

    name: str
    loss: float | None
    """Held-out loss in nats per token."""
    perplexity: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    seconds: float | None
    accuracy: float | None = None
    """Of a classifier."""
    samples_per_second: float | None = None


def summary_table(rows: Iterable[SummaryRow]) -> Table:
    """The table that ends a training, or compares several; what is not known is a dash."""
    rows = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    columns = _columns(rows)
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, *(cell(row) for cell in columns.values()))
    return table


def _columns(rows: Sequence[SummaryRow]) -> dict[str, Callable[[SummaryRow], str]]:
    """The columns by their titles: those of classifiers, of language models, or of both where both are shown."""
    classifiers = [row.accuracy is not None for row in rows]
    columns: dict[str, Callable[[SummaryRow], str]] = {"loss": lambda row: _number(row.loss, 4)}
    if any(classifiers):
        columns["accuracy"] = lambda row: _number(row.accuracy, 4)
    if not any(classifiers) or not all(classifiers):
        columns["perplexity"] = lambda row: _number(row.perplexity, 3)
        columns["bits/byte"] = lambda row: _number(row.bits_per_byte, 4)
        columns["tokens/s"] = lambda row: _rate(row.tokens_per_second)
    if any(classifiers):
        columns["samples/s"] = lambda row: _rate(row.samples_per_second)
    columns["time"] = lambda row: format_seconds(row.seconds) if row.seconds is not None else "-"
    return columns


def _rate(value: float | None) -> str:
    return format_count(value) if value is not None else "-"


def format_count(value: float) -> str:
    """A rate in at most seven characters: 312, 12,345 or 1.23 M."""
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value:,.0f}"


def format_seconds(seconds: float) -> str:
    """A duration: 8.2 s, 4:05 or 2:03:04."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _bar(console: Console) -> Bar:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[eta]}"),
    )
    # Redrawn by rich's own thread at a fixed pace, whatever the pace of the updates: that is what keeps it still.
    return Bar(*columns, console=console, refresh_per_second=REDRAWS_PER_SECOND, redirect_stdout=False)
