"""A study as people read it: the best trials and their recipe, what became of the others, what was spent."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lowland.platform.progress import format_count, format_seconds
from lowland.platform.search.best import best_recipe, chosen
from lowland.platform.search.importance import Importance
from lowland.platform.search.ledger import Price
from lowland.platform.search.lineage import changing, lineage
from lowland.platform.search.results import FEWEST, StudyResult, TrialResult
from lowland.platform.search.scaling import growth_lines
from lowland.platform.search.trials import Status
from lowland.trainers.errors import UserError

ROWS = 10
"""Trials on the leaderboard."""
COMPARED = 4
"""Of these the parameters are shown beside each other."""
LISTED = 12
"""Trials that are named in a line."""


def print_studies(results: Sequence[StudyResult], console: Console) -> None:
    """Prints a line for every study."""
    table = _table("study", "metric", ">best", ">when", ">trials", "of these")
    for result in results:
        states = [trial.status for trial in result.trials]
        counts = [f"{states.count(status)} {status}" for status in get_args(Status) if status in states]
        best = _value(result.best.value if result.best else None)
        when = f"{result.updated:%Y-%m-%d %H:%M}" if result.updated else "-"
        table.add_row(escape(result.name), escape(result.metric), best, when, str(len(states)), ", ".join(counts))
    console.print(table)


def print_study(result: StudyResult, importances: Sequence[Importance], console: Console) -> None:
    """Prints the leaderboard, the parameters, their importances, what became of all trials, and what was spent."""
    words = {"minimize": "the lowest", "maximize": "the highest"}
    aim = " and ".join(f"{words[objective.direction]} {objective.metric}" for objective in result.objectives)
    console.print(f"[bold]{escape(result.name)}[/bold]: {len(result.trials)} trials, {escape(aim)}")
    if result.setting is not None and result.setting.constraints:
        console.print(f"with {', '.join(map(str, result.setting.bounds))}", markup=False)
    if result.setting is not None:
        console.print(f"sampler {result.setting.sampler}, early stopping {result.setting.policy}", markup=False)
        if result.setting.abandoned:
            console.print("the process that led it is gone; go on with: lowland study resume", markup=False)
    if result.ranked:
        console.print()
        console.print(_ranks(result))
        if len(result.objectives) > 1:
            numbers = ", ".join(str(trial.number) for trial in result.front) or "no trial was trained whole"
            console.print(f"Pareto front, whole trainings that no other beats in all metrics: {numbers}")
        differing = _differing(result)
        if differing:
            console.print("\nParameters that differ")
            console.print(_parameters(result, differing))
    _print_importances(result, importances, console)
    if result.setting is not None and result.setting.warm_start:
        console.print("\nEarlier trainings")
        for line in result.setting.warm_start:
            console.print(f"  {line}", markup=False, soft_wrap=True)
    if growing := list(growth_lines(result)):
        console.print("\nAlong the front of value and cost")
        for line in growing:
            console.print(f"  {line}", markup=False)
    console.print("\nWhat became of trials")
    for line in fates(result):
        console.print(f"  {line}", markup=False)
    console.print("\nSpent")
    for line in spent(result):
        console.print(f"  {line}", markup=False)


def print_recipe(result: StudyResult, console: Console, number: int | None = None) -> None:
    """Prints the best recipe or that of a trial, or why there is none."""
    try:
        text, trial = best_recipe(result, number), chosen(result, number)
    except UserError as error:
        if number is not None:
            raise
        console.print(f"\nNo best recipe: {error}", markup=False)
        return
    _print_lineage(result, trial, console)
    which = "Best recipe" if number is None else f"Recipe of trial {number}"
    console.print(f"\n{which}, for `lowland train`\n", markup=False)
    console.print(text, markup=False, end="")


def _print_lineage(result: StudyResult, trial: TrialResult, console: Console) -> None:
    """Prints with which parameters each part of a forked trial's training went; its recipe has the last ones."""
    stretches = lineage(result, trial)
    if len(stretches) == 1:
        return
    console.print(f"\nHow trial {trial.number} came about: its recipe has the parameters of the last part only")
    names = changing(stretches)
    table = _table(">from", ">to", ">trial", *(f">{escape(name)}" for name in names))
    for one in stretches:
        shares = (f"{one.start / result.full:.0%}", f"{one.end / result.full:.0%}", str(one.trial))
        table.add_row(*shares, *(_parameter(one.parameters, name) for name in names))
    console.print(table)


def fates(result: StudyResult) -> Iterator[str]:
    """A line for every way in which trials ended or wait, with their numbers."""
    groups: dict[str, list[int]] = {}
    for trial in result.trials:
        groups.setdefault(_fate(trial, result), []).append(trial.number)
    for text, numbers in sorted(groups.items(), key=lambda item: -len(item[1])):
        named = ", ".join(map(str, numbers[:LISTED])) + (", ..." if len(numbers) > LISTED else "")
        yield f"{len(numbers)} {text} ({named})"
    if not groups:
        yield "none began"


def spent(result: StudyResult) -> Iterator[str]:
    """A line for every kind of resource."""
    ledger = result.ledger
    trainings = ledger.trainings if ledger else result.trainings
    yield f"{trainings:.1f} whole trainings, by length"
    if ledger is None:
        return
    if ledger.gpu_seconds:
        yield f"{_hours(ledger.gpu_seconds)} GPU-hours"
    yield f"{_hours(ledger.cpu_seconds)} CPU-hours; jobs took {format_seconds(ledger.seconds)} in all"
    if ledger.tokens:
        yield f"{format_count(ledger.tokens)} tokens"
    if result.price is not None:
        money = result.price.of(ledger.device_seconds)
        trials = sum(not trial.source for trial in result.trials)
        each = f"; {result.price.show(money / trials)} for each of {trials} trials" if trials else ""
        yield f"{result.price.show(money)}, at {result.price} an hour of a {_device(result)}{each}"
    lost = f"; workers were lost {ledger.restarts:.0f} times" if ledger.restarts else ""
    yield f"{ledger.goodput:.0%} of the time trained, {ledger.startup_share:.0%} was start-up{lost}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f}" if seconds >= 360 else f"{seconds / 3600:.2g}"


def _fate(trial: TrialResult, result: StudyResult) -> str:
    place = f"at {trial.reached / result.full:.0%} of a training"
    if trial.source:
        return "taken from earlier trainings"
    if trial.reason:
        return f"{trial.status}, {trial.reason}"
    if trial.unusable:
        return f"gave no number {place}"
    if trial.broken:
        return f"broke {', '.join(text.rpartition(':')[0] for text in trial.broken)} {place}"
    if trial.number in result.replaced:
        return f"stopped {place} and replaced by a copy of a better one"
    match trial.status:
        case "finished":
            return "trained to the end"
        case "stopped":
            return f"stopped {place}, since others were better there"
        case "paused":
            return f"paused {place}"
        case "failed":
            return "failed"
        case _:
            return f"running, to {trial.target / result.full:.0%} of a training"


def _ranks(result: StudyResult) -> Table:
    paid = any(trial.cost for trial in result.ranked)
    costs = [f">{'cost' if result.price else f'{_device(result)}-hours'}"] if paid else []
    others = [objective.metric for objective in result.objectives[1:]]
    metrics = [f">{escape(name)}" for name in (result.metric, *others)]
    table = _table(">rank", ">trial", *metrics, ">trained", "status", *costs)
    for rank, trial in enumerate(result.ranked[:ROWS], 1):
        there = trial.measured.get(trial.reached, {})
        values = [_value(trial.value), *(_value(there.get(name)) for name in others)]
        share, cost = f"{trial.reached / result.full:.0%}", [_cost(trial, result.price)] if paid else []
        table.add_row(str(rank), str(trial.number), *values, share, escape(_status(trial, result)), *cost)
    return table


def _status(trial: TrialResult, result: StudyResult) -> str:
    front = ["front"] if trial in result.front else []
    return ", ".join(["earlier" if trial.source else trial.status, *front, *(f"broke {b}" for b in trial.broken)])


def _cost(trial: TrialResult, price: Price | None) -> str:
    if not trial.cost:
        return "-"
    return price.show(price.of(trial.cost)) if price is not None else f"{trial.cost / 3600:.3g}"


def _device(result: StudyResult) -> str:
    """What an hour is an hour of."""
    gpus = any(account.get("gpus") for trial in result.trials for account in trial.accounts)
    return "GPU" if gpus else "CPU"


def _differing(result: StudyResult) -> list[str]:
    """Parameters that are not the same in all trials on the leaderboard."""
    shown = [trial.parameters for trial in result.ranked[:ROWS]]
    return [name for name in result.parameters if any(p.get(name) != shown[0].get(name) for p in shown)]


def _parameters(result: StudyResult, names: Sequence[str]) -> Table:
    best = result.ranked[:COMPARED]
    table = _table("parameter", *(f">trial {trial.number}" for trial in best))
    for name in names:
        table.add_row(escape(name), *(_parameter(trial.parameters, name) for trial in best))
    return table


def _print_importances(result: StudyResult, importances: Sequence[Importance], console: Console) -> None:
    if not importances:
        console.print(f"\nImportances are told from {FEWEST} trials on, if their values differ.")
        return
    place = f"{result.common / result.full:.0%} of a training"
    console.print(f"\nImportance of parameters at {place}: mean ± standard deviation over resampled trials")
    table = _table("parameter", ">share", "")
    for one in importances:
        table.add_row(escape(one.parameter), f"{one.mean:.2f} ± {one.deviation:.2f}", "█" * round(20 * one.mean))
    console.print(table)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        right = title.startswith(">")
        table.add_column(title.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table


def _parameter(parameters: Mapping[str, Any], name: str) -> str:
    value = parameters.get(name, "-")
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
