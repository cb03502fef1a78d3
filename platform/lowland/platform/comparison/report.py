"""A comparison as people read it: a table, notes on how sure it is, a page of plots, and the winners' recipes."""

import html
import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lowland.platform.comparison.figures import figures
from lowland.platform.comparison.plan import Plan
from lowland.platform.comparison.results import LEVEL, Against, ArmResult, ComparisonResult
from lowland.platform.comparison.stages import winner
from lowland.platform.comparison.statistics import Interval
from lowland.platform.progress import format_seconds
from lowland.platform.recipe.dump import dump
from lowland.trainers.errors import UserError

SUMMARY, PAGE = "comparison.txt", "comparison.html"
WIDEST = 400
"""Letters of a table's line at most."""


def print_result(result: ComparisonResult, console: Console) -> None:
    """Prints what the seeds say, what tuning took, and what is to be known of both."""
    console.print()
    console.print(f"[bold]{escape(heading(result.plan))}[/bold]", highlight=False, soft_wrap=True)
    for rows in (seed_rows(result), evidence_rows(result), tuning_rows(result)):
        _whole(console).print(_table(rows))
        console.print()
    for line in remarks(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _whole(console: Console) -> Console:
    """The console, but wide enough for any table: on a narrow screen lines go on below instead of losing numbers."""
    return Console(file=console.file, force_terminal=console.is_terminal, highlight=False, width=WIDEST)


def heading(plan: Plan) -> str:
    """What is compared."""
    aim = "lower" if plan.direction == "minimize" else "higher"
    return f"{plan.name}: {plan.metric}, {aim} is better, {len(plan.seeds)} seeds"


def seed_rows(result: ComparisonResult) -> list[list[str]]:
    """What seeds say of each arm, the titles first."""
    rows = [["arm", "seeds", result.plan.metric, f"minus {result.base.name}", "verdict"]]
    for arm in result.arms:
        seeds = f"{len(arm.values)}/{len(result.plan.seeds)}"
        difference = "" if arm.against is None else str(arm.against.difference)
        rows.append([arm.name, seeds, _shown(arm.mean), difference, result.verdict(arm)])
    return rows


def evidence_rows(result: ComparisonResult) -> list[list[str]]:
    """The tests of each arm and what its trainings took, the titles first."""
    rows = [["arm", "better", "p (t)", "p (signs)", "time", "GPU memory"]]
    for arm in result.arms:
        memory = "-" if arm.memory is None else f"{arm.memory:.1f} GiB"
        time = "-" if arm.seconds is None else _seconds(arm.seconds)
        rows.append([arm.name, *_tested(arm.against), time, memory])
    return rows


def tuning_rows(result: ComparisonResult) -> list[list[str]]:
    """What each arm's tuning took, the titles first."""
    rows = [["arm", "parameters", "trials", "trainings", "no value", "best", "time"]]
    for arm in result.arms:
        study = arm.tuning
        if study is None:
            rows.append([arm.name, *["-"] * 6])
            continue
        begun = [trial for trial in study.trials if trial.curve]
        lost = sum(trial.unusable for trial in begun)
        best = arm.winner.value if arm.winner is not None else None
        spent = format_seconds(arm.spent.seconds * (1 - arm.spent.startup_share)) if arm.spent is not None else "-"
        counts = [str(len(study.parameters)), str(len(begun)), f"{study.trainings:.1f}", str(lost)]
        rows.append([arm.name, *counts, "-" if best is None else f"{best:.5g}", spent])
    return rows


def remarks(result: ComparisonResult) -> Iterator[str]:
    """How the numbers are to be read, and what speaks against trusting them."""
    plan, tests = result.plan, sum(arm.against is not None for arm in result.arms)
    yield (
        f"Means with 95 % intervals (Student's t) over seeds {', '.join(map(str, plan.seeds))}; differences and tests "
        f"are seed by seed. p (t): paired t-test; p (signs): permutation test, at least "
        f"{2 / 2 ** len(plan.seeds):.2g} with so many seeds."
    )
    if tests > 1:
        yield f"P-values are adjusted for {tests} tests by Holm's method; a verdict needs p (t) < {LEVEL}."
    else:
        yield f"A verdict needs p (t) < {LEVEL}."
    yield "Winners were chosen by other seeds" + (
        " and on other held-out data than those reported." if all(arm.divided for arm in plan.arms.values()) else "."
    )
    yield from plan.cautions
    for arm in result.arms:
        if arm.at_edges:
            listed = ", ".join(f"{name} = {_parameter(arm, name)}" for name in arm.at_edges)
            yield f"note: of {arm.name}'s winner, {listed}: at the end of the range, beyond which better may lie."


def page(result: ComparisonResult) -> str:
    """The report as HTML that needs no network: everything is in it."""
    title = html.escape(heading(result.plan))
    parts = [f"<!doctype html><html><head><meta charset='utf-8'><title>{title}</title></head>"]
    parts.append(f"<body style='font-family: sans-serif; margin: 2em'><h1>{title}</h1>")
    parts += [_html(seed_rows(result)), "<h2>Tests and cost</h2>", _html(evidence_rows(result))]
    parts += ["<h2>Tuning</h2>", _html(tuning_rows(result))]
    parts += [f"<p>{html.escape(line)}</p>" for line in remarks(result)]
    library = True  # once, before the first plot
    for name, text, figure in figures(result):
        parts.append(f"<h2>{name}</h2><p>{html.escape(text)}</p>")
        parts.append(figure.to_html(full_html=False, include_plotlyjs=library))
        library = False
    parts.append("<h2>Winners</h2>")
    for arm in result.arms:
        if (recipe := winner_recipe(result.plan, arm)) is not None:
            parts.append(f"<h3>{html.escape(arm.name)}</h3><pre>{html.escape(recipe)}</pre>")
    return "\n".join([*parts, "</body></html>"])


def write_report(result: ComparisonResult, folder: Path) -> list[Path]:
    """Writes `comparison.txt`, `comparison.html`, and a recipe `<arm>.yaml` for each winner.

    Args:
        result: what `read_result` gives.
        folder: made if need be.

    Raises:
        UserError: the folder cannot be written.
    """
    text = io.StringIO()
    print_result(result, Console(file=text, width=160))
    files = {SUMMARY: text.getvalue(), PAGE: page(result)}
    files |= {f"{a.name}.yaml": found for a in result.arms if (found := winner_recipe(result.plan, a)) is not None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    return [folder / name for name in files]


def winner_recipe(plan: Plan, arm: ArmResult) -> str | None:
    """A winner's recipe as YAML for `lowland train`, with a name of its own; None without a winner."""
    if arm.winner is None:
        return None
    recipe = winner(plan, arm.name, arm.winner.parameters)
    return dump(recipe.model_copy(update={"name": f"{arm.name}-tuned"}))


def metrics_of(result: ComparisonResult) -> dict[str, float]:
    """As metrics of the comparison's run: `compare/<arm>/...`."""
    values = dict[str, float]()
    for arm in result.arms:
        held = {"seconds": arm.seconds, "gpu_memory_gib": arm.memory}
        held |= {"mean": arm.mean.mean, "half_interval": arm.mean.half} if arm.mean is not None else {}
        if arm.against is not None:
            found = arm.against
            held |= {"difference": found.difference.mean, "difference_half_interval": found.difference.half}
            held |= {"p_t": found.t, "p_signs": found.flips}
        values |= {f"compare/{arm.name}/{name}": value for name, value in held.items() if value is not None}
    return values


def _tested(test: Against | None) -> list[str]:
    if test is None:
        return [""] * 3
    t = "-" if test.t is None else f"{test.t:.3g}"
    return [f"{test.better}/{test.pairs}", t, f"{test.flips:.3g}"]


def _shown(found: Interval | None) -> str:
    return "-" if found is None else str(found)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)


def _parameter(arm: ArmResult, name: str) -> str:
    assert arm.winner is not None
    value, held = arm.winner.parameters[name], arm.winner.distributions[name]
    return f"{value:.3g} in [{held.low:.3g}, {held.high:.3g}]"  # type: ignore[attr-defined]


def _table(rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, title in enumerate(rows[0]):
        table.add_column(escape(title), justify="left" if place == 0 or title == "verdict" else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table


def _html(rows: list[list[str]]) -> str:
    style = "style='padding: 0.2em 1em 0.2em 0; text-align: left'"
    lines = ["<table>"]
    for place, row in enumerate(rows):
        cell = "td" if place else "th"
        lines.append("<tr>" + "".join(f"<{cell} {style}>{html.escape(text)}</{cell}>" for text in row) + "</tr>")
    return "\n".join([*lines, "</table>"])
