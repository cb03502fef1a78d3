"""What searches of real trainings say: best losses after epochs and seconds, and what it takes to reach a target."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean, median

from lowland.platform.comparison.statistics import interval, paired

Point = tuple[float, str, float, float | None]
"""Seconds, trial, loss, accuracy; of an epoch that a trial was trained and evaluated."""
SHARES = (0.25, 0.5, 1.0)
BASE = "stock"
"""What others are compared with, seed by seed."""


@dataclass(frozen=True)
class Search:
    """One search."""

    task: str
    method: str
    seed: int
    seconds: float
    """That it had."""
    points: Sequence[Point]
    """By time."""
    trials: int
    whole: int
    """Epochs of a whole training."""
    starts: Sequence[float] = ()
    """Seconds from decisions to first steps, where they are known."""

    @property
    def trained_whole(self) -> int:
        """Trials that came to their end."""
        return sum(count >= self.whole for count in Counter(point[1] for point in self.points).values())


def best_after(points: Iterable[Point], *, epochs: int | None = None, seconds: float = inf) -> float:
    """The lowest loss among the first epochs, of all trials together, within some seconds; infinite of none."""
    return min((loss for at, _, loss, _ in list(points)[:epochs] if at <= seconds), default=inf)


def accuracy_of_best(points: Iterable[Point]) -> float | None:
    """The accuracy where the loss is lowest."""
    return min(points, key=lambda point: point[2], default=(0.0, "", inf, None))[3]


def reached(points: Sequence[Point], target: float) -> tuple[float, float]:
    """After how many epochs, of all trials together, and seconds a loss is at most the target; infinite if none is."""
    return next(
        ((float(number), at) for number, (at, _, loss, _) in enumerate(points, 1) if loss <= target), (inf, inf)
    )


def by_method(searches: Iterable[Search]) -> dict[str, dict[str, list[Search]]]:
    """By task and method, by seed."""
    found: dict[str, dict[str, list[Search]]] = {}
    for search in sorted(searches, key=lambda one: one.seed):
        found.setdefault(search.task, {}).setdefault(search.method, []).append(search)
    return found


def losses(searches: Sequence[Search]) -> str:
    """The tables of all tasks, in Markdown."""
    parts = []
    for task, methods in by_method(searches).items():
        parts += [_quality(task, methods), _reaching(task, methods), _starting(task, methods)]
    return "\n\n".join(part for part in parts if part)


def _quality(task: str, methods: Mapping[str, Sequence[Search]]) -> str:
    every = [one for of in methods.values() for one in of]
    common = min(len(one.points) for one in every)
    seconds = min(one.seconds for one in every)
    columns: list[tuple[str, int | None, float]] = [
        *((f"{share * seconds:.0f} s", None, share * seconds) for share in SHARES),
        *((f"{share * common:.0f} epochs", int(share * common), inf) for share in SHARES),
    ]
    titles = [
        task,
        "searches",
        "trials",
        "whole",
        "epochs",
        "first after, s",
        *(f"loss after {title}" for title, _, _ in columns),
    ]
    rows = [[*titles, "accuracy of the best", f"loss minus {BASE}'s, {columns[2][0]}", f"{columns[5][0]}"]]
    for method, of in methods.items():
        row = [method, str(len(of))]
        row += [f"{fmean(numbers):.0f}" for numbers in _counts(of)]
        row.append(f"{fmean(s.points[0][0] if s.points else inf for s in of):.0f}")
        row += [f"{fmean(best_after(s.points, epochs=n, seconds=t) for s in of):.4f}" for _, n, t in columns]
        found = [accuracy for s in of if (accuracy := accuracy_of_best(s.points)) is not None]
        row.append(f"{fmean(found):.4f}" if found else "")
        row += [_difference(of, methods.get(BASE, ()), n, t) for _, n, t in (columns[2], columns[5])]
        rows.append(row)
    return _table(rows)


def _counts(of: Sequence[Search]) -> list[list[int]]:
    return [[s.trials for s in of], [s.trained_whole for s in of], [len(s.points) for s in of]]


def _difference(of: Sequence[Search], base: Sequence[Search], epochs: int | None, seconds: float) -> str:
    """With its 95 % interval, over the seeds that both have."""
    values, others = (
        {s.seed: best_after(s.points, epochs=epochs, seconds=seconds) for s in some} for some in (of, base)
    )
    if not values.keys() & others.keys() or of is base or inf in (*values.values(), *others.values()):
        return ""
    return str(paired(values, others))


def _reaching(task: str, methods: Mapping[str, Sequence[Search]]) -> str:
    """What it takes to reach the mean of the best that each other method had at its end."""
    rows = [[task, "mean best of", "method", "reached", "epochs", "of its epochs", "seconds", "of its seconds"]]
    for source, of in methods.items():
        ends = [best_after(s.points) for s in of]
        if source == "lowland" or inf in ends:
            continue
        spent, target = fmean(len(s.points) for s in of), fmean(ends)
        for method, some in methods.items():
            took = [reached(s.points, target) for s in some]
            epochs, seconds = median(e for e, _ in took), median(s for _, s in took)
            share = f"{sum(e < inf for e, _ in took)}/{len(took)}"
            goal = f"{source}'s end: {interval(ends)}"
            row = [task, goal, method, share, _number(epochs), _part(spent, epochs)]
            rows.append([*row, _number(seconds), _part(fmean(s.seconds for s in of), seconds)])
    return _table(rows) if len(rows) > 1 else ""


def _starting(task: str, methods: Mapping[str, Sequence[Search]]) -> str:
    """How long workers that were there took from a decision to the first step."""
    found = {method: sorted(start for s in of for start in s.starts) for method, of in methods.items()}
    return "\n".join(
        f"{task}, {method}: {len(starts)} parts of trainings began {median(starts):.2f} s after they were decided on "
        f"(median; 95 % of them within {starts[int(0.95 * (len(starts) - 1))]:.2f} s, all within {starts[-1]:.2f} s)"
        for method, starts in found.items()
        if starts
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value < inf else "not"


def _part(whole: float, part: float) -> str:
    return f"1/{whole / part:.1f}" if 0 < part < inf else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
