"""What is trained with which learning rate and seed, and what the results say: no torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowland.platform.comparison.statistics import Interval, interval, paired

TUNING_SEED = 0
"""The seed that learning rates are tried with; the reported seeds are 1, 2, ..."""
RATES = 5
"""Learning rates that every method tries."""


@dataclass(frozen=True)
class Cell:
    """One training."""

    task: str
    method: str
    rate: float
    seed: int


@dataclass(frozen=True)
class Result:
    """What a training gave; no quality if it diverged or failed."""

    tuning: float | None
    """Quality on the part of the data that learning rates are chosen by."""
    quality: float | None
    """Quality on the test part."""
    train_loss: float | None
    steps: int
    gradients: int
    """Gradient evaluations of a batch."""
    seconds: float
    error: str = ""


Results = dict[Cell, Result]


def next_cells(
    task: str, method: str, centre: float, seeds: int, results: Mapping[Cell, Result], *, larger: bool
) -> list[Cell]:
    """What is to be trained next for a method, given all that is finished; empty once it is done.

    Learning rates are the centre times powers of two.  Three a factor of four apart come first, then two beside the
    best of them: half and double if it is the middle one, else half-way back and a factor of four beyond.  Every
    method so tries five rates, wherever its centre lies.  The best is then trained with each seed.

    Args:
        task: the task's name.
        method: the method's name.
        centre: where its learning rates are centred.
        seeds: how many seeds are reported.
        results: what is finished.
        larger: whether a larger quality is better.
    """
    first = [Cell(task, method, centre * 4.0**k, TUNING_SEED) for k in (-1, 0, 1)]
    missing = [cell for cell in first if cell not in results]
    if missing:
        return missing
    found = best(first, results, larger=larger)
    side = first.index(found) - 1
    powers = (-1, 1) if side == 0 else (side, 4 * side)
    second = [Cell(task, method, centre * 2.0**power, TUNING_SEED) for power in powers]
    missing = [cell for cell in second if cell not in results]
    if missing:
        return missing
    rate = best(first + second, results, larger=larger).rate
    finals = [Cell(task, method, rate, seed) for seed in range(1, seeds + 1)]
    return [cell for cell in finals if cell not in results]


def best(cells: Sequence[Cell], results: Mapping[Cell, Result], *, larger: bool) -> Cell:
    """The cell of best quality on the tuning part; diverged ones are worse than any, and the lowest rate of those."""

    def badness(cell: Cell) -> tuple[bool, float, float]:
        value = results[cell].tuning
        return value is None, 0.0 if value is None else -value if larger else value, cell.rate

    return min(cells, key=badness)


@dataclass(frozen=True)
class Row:
    """What is reported of a method on a task."""

    task: str
    method: str
    base: str
    steps: int
    gradients: int
    rate: float
    at_edge: bool
    """Whether no larger, or no smaller, learning rate was tried."""
    seeds: int
    without: int
    """Seeds that gave no quality, since they diverged or failed."""
    quality: Interval | None
    difference: Interval | None
    verdict: str


def row(task: str, method: str, base: str | None, results: Mapping[Cell, Result], *, larger: bool) -> Row | None:
    """What the finished cells say of a method; None before its learning rates are tried."""
    tried = [cell for cell in results if cell.task == task and cell.method == method and cell.seed == TUNING_SEED]
    if len(tried) < RATES:
        return None
    chosen = best(tried, results, larger=larger)
    finals = _finals(task, method, results)
    values = {cell.seed: value for cell in finals if (value := results[cell].quality) is not None}
    quality = interval(list(values.values())) if values else None
    difference = None
    if base is not None:
        others = {c.seed: value for c in _finals(task, base, results) if (value := results[c].quality) is not None}
        difference = paired(values, others) if values.keys() & others.keys() else None
    rates = [cell.rate for cell in tried]
    missing = [cell for cell in finals if cell.seed not in values]
    trouble = "" if not missing else "failed" if any(results[c].error for c in missing) else "diverged"
    return Row(
        task,
        method,
        base or "",
        results[chosen].steps,
        results[chosen].gradients,
        chosen.rate,
        chosen.rate in (min(rates), max(rates)),
        len(finals),
        len(missing),
        quality,
        difference,
        trouble or ("base" if base is None else _verdict(difference, larger=larger)),
    )


def _finals(task: str, method: str, results: Mapping[Cell, Result]) -> list[Cell]:
    return [cell for cell in results if cell.task == task and cell.method == method and cell.seed != TUNING_SEED]


def _verdict(difference: Interval | None, *, larger: bool) -> str:
    if difference is None or difference.half is None:
        return "too few seeds"
    if abs(difference.mean) <= difference.half:
        return "not told apart"
    return "better" if (difference.mean > 0) == larger else "worse"


COLUMNS = ("task", "method", "against", "steps", "gradients", "rate", "seeds", "test", "difference", "verdict")


def texts(row: Row) -> tuple[str, ...]:
    """A row as it is printed, by `COLUMNS`; an asterisk marks a rate at the edge of those tried."""
    rate = f"{row.rate:.3g}{'*' if row.at_edge else ''}"
    quality, difference = (str(value) if value is not None else "" for value in (row.quality, row.difference))
    numbers = (str(row.steps), str(row.gradients), rate, f"{row.seeds - row.without}/{row.seeds}")
    return (row.task, row.method, row.base, *numbers, quality, difference, row.verdict)


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(texts(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Store:
    """Finished cells in a file, which a later call goes on from; those that failed are trained again.

    Args:
        path: the file; None keeps nothing.
        settings: by task, what its cells have in common.

    Raises:
        SystemExit: the file holds cells of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path, self.results = path, Results()
        self._content: dict[str, Any] = {"settings": {}, "circumstances": [], "rows": [], "cells": []}
        if path is not None and path.exists():
            self._content = json.loads(path.read_text(encoding="utf-8"))
        for task, now in settings.items():
            before = self._content["settings"].setdefault(task, now)
            if before != now:
                raise SystemExit(f"{path}: holds {task} with {before}, not {now}; give --out another file")
        for cell in self._content["cells"]:
            result = {name: cell.pop(name) for name in Result.__dataclass_fields__}
            if not result["error"]:
                self.results[Cell(**cell)] = Result(**result)

    def add(self, cell: Cell, result: Result) -> None:
        """Keeps a finished cell."""
        self.results[cell] = result
        self._write()

    def close(self, rows: Sequence[Row], circumstances: dict[str, Any]) -> None:
        """Adds what the cells say, and where they were trained."""
        self._content["rows"] = [asdict(row) for row in rows]
        self._content["circumstances"].append(circumstances)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        self._content["cells"] = [asdict(cell) | asdict(result) for cell, result in self.results.items()]
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps(self._content, indent=1), encoding="utf-8")
        temporary.replace(self._path)
