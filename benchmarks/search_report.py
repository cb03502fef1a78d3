"""Tables of search_efficiency.py's results."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from search_runs import Cell

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
        "| method | workers | tasks | runs | within 1/4 | epochs of 64 trainings | CPU s per proposal | per run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, "", *_cost_table(results)])


def after(results: Mapping[str, Mapping[str, Any]], trainings: Sequence[int]) -> str:
    """Markdown: what the trial that a search would choose after so many trainings lacks to the best of any run.

    In units of the task: what random search lacks after the most of these trainings.  With it, the mean difference
    from `ours` of the same task and seed with its standard error, and in how many runs the chosen trial was whole.

    Args:
        results: of `run_on`, those of the method `random` among them.
        trainings: whole ones.
    """
    lowest, drawn = dict[str, float](), defaultdict[str, list[float]](list)
    groups = defaultdict[tuple[int, str], list[Mapping[str, Any]]](list)
    for run in results.values():
        groups[run["workers"], run["method"]].append(run)
        lowest[run["task"]] = min(lowest.get(run["task"], math.inf), *(value for _, value, _ in run["chosen"]))
        if run["method"] == "random":
            drawn[run["task"]].append(_chosen(run, max(trainings))[0])
    units = {task: mean(values) - lowest[task] for task, values in drawn.items()}

    def regret(run: Mapping[str, Any], t: int) -> float:
        return (_chosen(run, t)[0] - lowest[run["task"]]) / units[run["task"]]

    def cell(runs: Runs, t: int) -> str:
        ours = {(r["task"], r["seed"]): r for r in groups[runs[0]["workers"], "ours"]}
        pairs = [(run, ours[run["task"], run["seed"]]) for run in runs if (run["task"], run["seed"]) in ours]
        more = [regret(run, t) - regret(other, t) for run, other in pairs if run is not other]
        text = f"{mean(regret(run, t) for run in runs):.2f}"
        if len(more) > 1:
            text += f" ({mean(more):+.2f} ± {stdev(more) / math.sqrt(len(more)):.2f})"
        return f"{text}, {mean(_chosen(run, t)[1] for run in runs):.0%}"

    rows = [
        f"| method | workers | tasks | runs | {' | '.join(f'after {t}' for t in trainings)} |",
        f"|---|---|---|---|{'---|' * len(trainings)}",
    ]
    for (workers, method), runs in list(groups.items()):
        found = " | ".join(cell(runs, t) for t in trainings)
        rows.append(f"| {method} | {workers} | {len({run['task'] for run in runs})} | {len(runs)} | {found} |")
    return "\n".join(rows)


def _chosen(run: Mapping[str, Any], trainings: float) -> tuple[float, bool]:
    """What was chosen last within so many trainings; what was chosen first, if nothing was."""
    within = [one for one in run["chosen"] if one[0] <= trainings] or run["chosen"][:1]
    return within[-1][1], within[-1][2]


def left(missing: Sequence[Cell], runs: Iterable[Mapping[str, Any]], processes: int) -> str:
    """How many runs are missing, and how long they may take: by what such runs took, where any was measured."""
    if not missing:
        return ""
    seconds = defaultdict[tuple[str, int], list[float]](list)
    for run in runs:
        seconds[run["method"], run["workers"]].append(run["cpu_seconds"])
    known = [mean(seconds[c.method, c.workers]) for c in missing if (c.method, c.workers) in seconds]
    unknown = f", and {len(missing) - len(known)} of a kind that was not measured" if len(known) < len(missing) else ""
    return (
        f"{len(missing)} runs are missing: {sum(known) / processes:.0f} s for {len(known)} of them with {processes} "
        f"processes on as many free cores{unknown}\n"
    )


def _speed(method: str) -> bool:
    return not method.startswith("cost")


def _row(method: str, workers: int, runs: Runs) -> str:
    share = sum(_within(run, RANDOM / 4) for run in runs) / len(runs)
    tasks = {run["task"] for run in runs}
    per_proposal = median(run["cpu_seconds"] / run["trials"] for run in runs)
    per_run = mean(run["cpu_seconds"] for run in runs)
    return (
        f"| {method} | {workers} | {len(tasks)} | {len(runs)} | {share:.0%} | 1/{speed_up(runs):.1f} "
        f"| {per_proposal:.3f} | {per_run:.1f} |"
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
