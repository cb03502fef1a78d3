"""What a benchmark of optimizer steps found, as a table, and what was to be reached."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BASE = "torch fused AdamW"
BYTES = {
    BASE: 28,
    "torch fused SGD": 20,
    "adamw": 28,
    "sgd": 20,
    "lion": 20,
    "schedule_free_adamw": 28,
    "schedule_free_sgd": 20,
    "tam": 28,
    "adatamw": 36,
}
"""Per parameter: 8 for the weight, 4 for the gradient, 8 for a state; 8 for TAM's sums, which read two tensors."""
COPY_SHARE = 0.85
BARS = {"adatamw": COPY_SHARE, "tam": COPY_SHARE, "lion": COPY_SHARE}
ADATAMW_TIME = 1.3


@dataclass
class Row:
    """What was measured of one optimizer."""

    layout: str
    method: str
    parameters: int = 0
    milliseconds: float | None = None
    host_milliseconds: float | None = None
    waits: bool | None = None
    error: str | None = None


def show(report: Mapping[str, Any]) -> None:
    """The table, and below it what was to be reached."""
    head = ("layout", "method", "ms", "B/param", "GB/s", "% of copy", "x fused AdamW", "host ms", "waits")
    rows = [cells(row, report) for row in report["rows"]]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in (head, *rows):
            print(" | ".join(line))
    else:
        table = Table(*head)
        for line in rows:
            table.add_row(*line)
        Console(width=140).print(table)
    for line in bars(report):
        print(line)


def cells(row: Row, report: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    if row.milliseconds is None:
        return (row.layout, row.method, "-", "", "", "", "", "", row.error or "")
    rate, share, ratio = figures(row, report)
    return (
        row.layout,
        row.method,
        f"{row.milliseconds:.2f}",
        str(BYTES.get(row.method, "-")),
        f"{rate:.0f}" if rate else "-",
        f"{share:.1%}" if share else "-",
        f"{ratio:.3f}" if ratio else "-",
        f"{row.host_milliseconds or 0:.2f}",
        {True: "yes", False: "no", None: "-"}[row.waits] + (f" ({row.error})" if row.error else ""),
    )


def figures(row: Row, report: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """GB/s, its share of a copy's, and the time against fused AdamW's in the same layout."""
    assert row.milliseconds is not None
    base = next((r.milliseconds for r in report["rows"] if r.method == BASE and r.layout == row.layout), None)
    ratio = row.milliseconds / base if base else None
    if row.method not in BYTES:
        return None, None, ratio
    rate = BYTES[row.method] * row.parameters / row.milliseconds / 1e6
    return rate, rate / report["copy_gb_per_second"], ratio


def bars(report: Mapping[str, Any]) -> Iterator[str]:
    """What was to be reached, and whether it was."""
    for row in report["rows"]:
        if row.method not in BARS or row.milliseconds is None:
            continue
        _, share, ratio = figures(row, report)
        if share is not None:
            verdict = "pass" if share >= BARS[row.method] else "FAIL"
            wanted = f"{BARS[row.method]:.0%} wanted"
            yield f"{verdict}: {row.layout} {row.method}: {share:.1%} of a copy's bandwidth, {wanted}"
        if row.method == "adatamw" and ratio is not None:
            verdict = "pass" if ratio <= ADATAMW_TIME else "FAIL"
            yield f"{verdict}: {row.layout} adatamw: {ratio:.3f} x fused AdamW, {ADATAMW_TIME} wanted"
