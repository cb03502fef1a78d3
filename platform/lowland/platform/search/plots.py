"""A study as one page of plots."""

import html
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import create_trial

from lowland.platform.search.importance import Importance, scratch_study, tried_ranges
from lowland.platform.search.lineage import changing, lineage
from lowland.platform.search.results import StudyResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

AXES = 8
"""Parameters in the parallel coordinates: the most important ones."""
WIDTH = 20
"""Characters of a name on an axis of these."""


def page(result: StudyResult, importances: Sequence[Importance]) -> str:
    """The plots as HTML that needs no network: everything is in it."""
    title = html.escape(f"{result.name}: {result.metric}")
    parts = [f"<!doctype html><html><head><meta charset='utf-8'><title>{title}</title></head>"]
    parts.append(f"<body style='font-family: sans-serif; margin: 2em'><h1>{title}</h1>")
    library = True  # once, before the first plot
    for heading, text, figure in _figures(result, importances):
        parts.append(f"<h2>{heading}</h2><p>{html.escape(text)}</p>")
        parts.append(figure.to_html(full_html=False, include_plotlyjs=library))
        library = False
    if library:
        parts.append("<p>No trial has a value yet.</p>")
    return "\n".join([*parts, "</body></html>"])


def _figures(result: StudyResult, importances: Sequence[Importance]) -> "Iterator[tuple[str, str, Figure]]":
    if not result.ranked:
        return
    place = f"{result.common / result.full:.0%} of a training"
    yield "History", "The value of each trial where its training has come to, and the best so far.", _history(result)
    yield "Learning curves", "A line for each trial.", _curves(result)
    if result.replaced and result.best is not None:
        yield "Schedules", "Parameters over the training of the best trial, with its parents'.", _schedules(result)
    if importances:
        text = f"Shares at {place}; bars are standard deviations over resampled trials."
        yield "Importance", text, _importance(importances)
    compared = _compared(result)
    if len(compared.trials) > 1:
        names = [one.parameter for one in importances] or result.parameters
        everywhere = [n for n in names if all(n in trial.params for trial in compared.trials)]
        if everywhere:
            text = f"A line for each trial, its value at {place}."
            yield "Parallel coordinates", text, _parallel(compared, everywhere[:AXES], result)
        yield "Slice", f"A point for each trial, its value at {place}.", _slice(compared, result)
    for other in result.objectives[1:]:
        text = (
            f"{result.metric} and {other.metric} where each trial's training has come to; the front is of all metrics."
        )
        yield "Pareto front", text, _front(result, other.metric)
    if sum(trial.cost > 0 for trial in result.ranked) > 1:
        heading = "Cost" if result.front else "Pareto front"
        yield heading, "Trials that no other beats in both, value and cost, are joined.", _pareto(result)


def _history(result: StudyResult) -> "Figure":
    import plotly.graph_objects as go

    trials = sorted(result.ranked, key=lambda trial: trial.number)
    shares = [trial.reached / result.full for trial in trials]
    marker = {"color": shares, "cmin": 0, "cmax": 1, "colorbar": {"title": "trained", "tickformat": ".0%"}}
    numbers, values = [trial.number for trial in trials], [trial.value for trial in trials if trial.value is not None]
    points = go.Scatter(x=numbers, y=values, mode="markers", marker=marker, name="trials")
    better = min if result.direction == "minimize" else max
    allowed = [(trial.number, trial.value or 0.0) for trial in trials if not trial.broken]
    best = [better(value for _, value in allowed[: i + 1]) for i in range(len(allowed))]
    line = go.Scatter(x=[n for n, _ in allowed], y=best, mode="lines", line={"shape": "hv"}, name="best so far")
    figure = go.Figure([points, line]).update_layout(legend={"orientation": "h", "y": 1.1})
    return _laid_out(figure, "trial", result.metric)


def _curves(result: StudyResult) -> "Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    for trial in result.ranked:
        finite = sorted((r / result.full, value) for r, value in trial.curve.items() if math.isfinite(value))
        shares, values = [share for share, _ in finite], [value for _, value in finite]
        best = trial is result.best
        figure.add_trace(
            go.Scatter(
                x=shares,
                y=values,
                mode="lines+markers",
                marker={"size": 4},
                line={"width": 3 if best else 1},
                opacity=1.0 if best else 0.5,
                name=f"trial {trial.number}",
            )
        )
    figure.update_xaxes(tickformat=".0%").update_layout(showlegend=False)
    return _laid_out(figure, "trained", result.metric)


def _schedules(result: StudyResult) -> "Figure":
    import plotly.graph_objects as go

    assert result.best is not None
    stretches = lineage(result, result.best)
    figure = go.Figure()
    for name in changing(stretches) or result.parameters[:1]:
        shares = [place / result.full for one in stretches for place in (one.start, one.end)]
        values = [one.parameters.get(name) for one in stretches for _ in (one.start, one.end)]
        figure.add_trace(go.Scatter(x=shares, y=values, mode="lines", name=name))
    figure.update_xaxes(tickformat=".0%").update_yaxes(type="log")
    return _laid_out(figure, "trained", "parameter")


def _importance(importances: Sequence[Importance]) -> "Figure":
    import plotly.graph_objects as go

    rows = list(reversed(importances))
    bars = go.Bar(
        x=[one.mean for one in rows],
        y=[one.parameter for one in rows],
        error_x={"type": "data", "array": [one.deviation for one in rows]},
        orientation="h",
    )
    return _laid_out(go.Figure(bars), "share", "")


def _front(result: StudyResult, other: str) -> "Figure":
    import plotly.graph_objects as go

    front = result.front
    rest = [trial for trial in result.ranked if trial not in front]
    groups = {
        "trials": [trial for trial in rest if not trial.broken],
        "trials that break a constraint": [trial for trial in rest if trial.broken],
        "front": sorted(front, key=lambda trial: trial.measured[trial.reached][other]),
    }
    figure = go.Figure()
    for name, trials in groups.items():
        figure.add_trace(
            go.Scatter(
                x=[trial.measured.get(trial.reached, {}).get(other) for trial in trials],
                y=[trial.value for trial in trials],
                text=[f"trial {trial.number}" for trial in trials],
                mode="lines+markers" if name == "front" and len(result.objectives) == 2 else "markers",
                marker={"symbol": "x" if "break" in name else "circle"},
                name=name,
            )
        )
    return _laid_out(figure, other, result.metric)


def _pareto(result: StudyResult) -> "Figure":
    import plotly.graph_objects as go

    trials = sorted((t for t in result.ranked if t.cost > 0), key=lambda t: (t.cost, result.sign * (t.value or 0.0)))
    front, lowest = [], math.inf
    for trial in trials:
        value = result.sign * (trial.value or 0.0)
        if value < lowest:
            front.append(trial)
            lowest = value
    names = [f"trial {trial.number}" for trial in trials]
    costs, values = [t.cost for t in trials], [t.value for t in trials]
    points = go.Scatter(x=costs, y=values, text=names, mode="markers", name="trials")
    line = go.Scatter(x=[t.cost for t in front], y=[t.value for t in front], mode="lines+markers", name="front")
    figure = go.Figure([points, line])
    figure.update_xaxes(type="log")
    gpus = any(account["gpus"] for trial in trials for account in trial.accounts)
    return _laid_out(figure, "GPU-seconds" if gpus else "CPU-seconds", result.metric)


def _parallel(compared: optuna.Study, names: Sequence[str], result: StudyResult) -> "Figure":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = optuna.visualization.plot_parallel_coordinate(compared, params=list(names), target_name=result.metric)
    # Optuna cuts names at their ends, where those of momenta differ.
    labels = [name if len(name) <= WIDTH else f"…{name[1 - WIDTH :]}" for name in sorted(names)]
    return figure.update_xaxes(ticktext=[result.metric, *labels]).update_layout(title=None)


def _slice(compared: optuna.Study, result: StudyResult) -> "Figure":
    return optuna.visualization.plot_slice(compared, target_name=result.metric).update_layout(title=None)


def _compared(result: StudyResult) -> optuna.Study:
    """A study of the trials that were measured at the common resource, with the values they had there."""
    trials, ranges = [], tried_ranges(result)
    for trial in result.trials:
        value = trial.curve.get(result.common, math.inf)
        if math.isfinite(value):
            plain = {name: _plain(ranges.get(name, held)) for name, held in trial.distributions.items()}
            parameters = {name: _text(value) for name, value in trial.parameters.items()}
            trials.append(create_trial(params=parameters, distributions=plain, value=value))
    return scratch_study(result.direction, trials)


def _plain(distribution: BaseDistribution) -> BaseDistribution:
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalDistribution(tuple(_text(choice) for choice in distribution.choices))
    return distribution


def _text(value: Any) -> Any:
    """Lists and sections have no place on an axis."""
    return json.dumps(value) if isinstance(value, list | tuple | Mapping) else value


def _laid_out(figure: "Figure", x: str, y: str) -> "Figure":
    return figure.update_layout(xaxis_title=x, yaxis_title=y, template="plotly_white", height=480)
