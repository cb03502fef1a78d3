"""What a running search shows: a live table on a terminal, plain lines anywhere else."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lowland.platform.progress import format_seconds
from lowland.platform.search.ledger import Ledger, Price
from lowland.platform.search.setting import TICKS
from lowland.platform.search.trials import TrialView

PLAIN_SECONDS = 60.0


@dataclass(frozen=True)
class State:
    """A search at a moment."""

    trials: Sequence[TrialView]
    sign: float
    """-1 if the metric is to rise."""
    ledger: Ledger
    share: float | None
    """Of the budget or the trials that is done."""
    share_before: float
    """The same when this command began."""
    seconds: float
    """Since this command began."""
    price: Price | None = None
    """Of an hour of a device."""

    @property
    def counts(self) -> Counter[str]:
        """Trials of this search by status."""
        return Counter(trial.status for trial in self.trials if not trial.source)

    @property
    def best(self) -> TrialView | None:
        """The leaderboard's first: whole trainings before others, by the value where their training has come to."""
        valued = [t for t in self.trials if math.isfinite(t.curve.get(t.reached, math.inf))]
        return min(valued, key=lambda t: (t.reached < TICKS, t.curve[t.reached], t.number), default=None)

    @property
    def left(self) -> float | None:
        """Seconds to the expected end, at the pace of this command."""
        if self.share is None or self.share >= 1 or self.share <= self.share_before:
            return None
        return self.seconds * (1 - self.share) / (self.share - self.share_before)


class SearchDisplay:
    """Shows a search on a console; a context manager."""

    def __init__(self, console: Console, metric: str) -> None:
        self._console, self._metric = console, metric
        live = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, refresh_per_second=2, redirect_stdout=False) if live else None
        self._told = time.monotonic()

    def __enter__(self) -> "SearchDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(text), soft_wrap=True)

    def update(self, state: State) -> None:
        """Shows how the search stands; a plain line once a minute where there is no terminal."""
        if self._live is not None:
            self._live.update(state_table(state, self._metric))
        elif time.monotonic() - self._told >= PLAIN_SECONDS:
            self._told = time.monotonic()
            self.event(state_line(state, self._metric))


def state_table(state: State, metric: str) -> Group:
    """The live table, in two parts: a terminal may have no more than 80 columns."""
    fields = list(_fields(state, metric).items())
    return Group(_row(fields[:5]), _row(fields[5:]))


def _row(fields: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, _ in fields:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row(*(text for _, text in fields))
    return table


def state_line(state: State, metric: str) -> str:
    """The same in a line."""
    return "  ".join(f"{title} {text}" for title, text in _fields(state, metric).items() if text != "-")


def _fields(state: State, metric: str) -> dict[str, str]:
    counts, best, left = state.counts, state.best, state.left
    return {
        "running": str(counts["running"]),
        "paused": str(counts["paused"]),
        "done": str(counts["finished"] + counts["stopped"]),
        "failed": str(counts["failed"]),
        f"best {metric}": f"{best.curve[best.reached] * state.sign:.4f} (trial {best.number})"
        if best is not None
        else "-",
        "spent": ", ".join(_spent(state)),
        "budget": f"{100 * state.share:.0f}%" if state.share is not None else "-",
        "end": _end(left, datetime.now()) if left is not None else "-",
    }


def _end(left: float, now: datetime) -> str:
    """When the search is expected to end: the clock, the day if it is another, and how long that is."""
    end = now + timedelta(seconds=left)
    return f"{end:{'%H:%M' if end.date() == now.date() else '%a %d %H:%M'}}, in {format_seconds(left)}"


def _spent(state: State) -> list[str]:
    ledger = state.ledger
    money = [state.price.show(state.price.of(ledger.device_seconds))] if state.price is not None else []
    return [f"{ledger.trainings:.1f} trainings", format_seconds(ledger.seconds), *money]
