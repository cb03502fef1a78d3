"""Tables of search_efficiency.py's results."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Runs = Sequence[Mapping[str, Any]]
RANDOM = 64
MISSED = 0.3
"""Speed-up that a task counts for whose median run misses the target."""


def report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown."""
    groups = defaultdict[tuple[str, int], list[Mapping[str, Any]]](list)
    for run in results.values():
        groups[run["method"], run["workers"]].append(run)
    rows = [_row(method, workers, runs) for (method, workers), runs in groups.items() if _speed(method)]
    head = [
        "| method | workers | tasks | runs | within 1/4 | epochs of 64 trainings | CPU s per proposal |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, "", *_cost_table(results)])


def _speed(method: str) -> bool:
    return not method.startswith("cost")


def _row(method: str, workers: int, runs: Runs) -> str:
    share = sum(_within(run, RANDOM / 4) for run in runs) / len(runs)
    tasks = {run["task"] for run in runs}
    seconds = median(run["cpu_seconds_per_proposal"] for run in runs)
    return (
        f"| {method} | {workers} | {len(tasks)} | {len(runs)} | {share:.0%} | 1/{speed_up(runs):.1f} | {seconds:.3f} |"
    )


def _within(run: Mapping[str, Any], trainings: float) -> bool:
    return bool(run["reached"]) and run["trainings"] <= trainings


def speed_up(runs: Runs) -> float:
    """64 trainings over the median run's, as the geometric mean over tasks."""
    by_task = defaultdict[str, list[float]](list)
    for run in runs:
        by_task[run["task"]].append(run["trainings"] if run["reached"] else math.inf)
    middles = [median(spent) for spent in by_task.values()]
    logs = [math.log(RANDOM / m if math.isfinite(m) else MISSED) for m in middles]
    return math.exp(sum(logs) / len(logs))


def _cost_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of runs that differ only in the method: the seconds to TPE's best, over those of TPE."""
    runs = [run for run in results.values() if not _speed(run["method"])]
    tpe = {(r["task"], r["workers"], r["seed"]): r for r in runs if r["method"] == "cost: tpe"}
    ratios = defaultdict[tuple[str, int], list[tuple[float, bool]]](list)
    for run in runs:
        other = tpe.get((run["task"], run["workers"], run["seed"]))
        if other is not None and run is not other:
            ratios[run["method"], run["workers"]].append(_ratio(run["costs"], other["costs"]))
    if not ratios:
        return []
    head = [
        "| method | workers | runs | reach TPE's best in half its seconds | seconds to TPE's best (median) |",
        "|---|---|---|---|---|",
    ]
    return head + [
        f"| {method} | {workers} | {len(found)} | {sum(r <= 0.5 for r, _ in found) / len(found):.0%} "
        f"| {median(r for r, _ in found):.2f} |"
        for (method, workers), found in ratios.items()
    ]


def _ratio(costs: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> tuple[float, bool]:
    spent, best = other[-1]
    reached = next((cost for cost, value in costs if value <= best), math.inf)
    return reached / spent, math.isfinite(reached)
