"""The plots of a comparison."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lowland.platform.comparison.results import ComparisonResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def figures(result: ComparisonResult) -> "Iterator[tuple[str, str, Figure]]":
    """Heading, explanation and plot; only those of which something is known."""
    if any(arm.values for arm in result.arms):
        yield "Seeds", "A point for each seed; the mean with its 95 % interval.", _seeds(result)
    if any(arm.against is not None for arm in result.arms):
        text = f"Mean differences to {result.base.name}, seed by seed, with 95 % intervals; a point for each seed."
        yield "Differences", text, _differences(result)
    if any(arm.curve for arm in result.arms):
        text = (
            "The best that n trials of an arm's search found, expected over all orderings of its trials, from where "
            "every ordering has found a value. Trials count with the value where their training ended."
        )
        yield "Tuning curves", text, _tuning(result)


def _seeds(result: ComparisonResult) -> "Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm in result.arms:
        values = list(arm.values.values())
        names = [f"seed {seed}" for seed in arm.values]
        figure.add_trace(go.Scatter(x=[arm.name] * len(values), y=values, text=names, mode="markers", opacity=0.5))
        if arm.mean is not None:
            figure.add_trace(_mean([arm.name], [arm.mean.mean], [arm.mean.half]))
    return _laid_out(figure.update_layout(showlegend=False), "", result.plan.metric)


def _differences(result: ComparisonResult) -> "Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm in result.arms:
        if arm.against is None:
            continue
        both = sorted(arm.values.keys() & result.base.values.keys())
        found = [arm.values[seed] - result.base.values[seed] for seed in both]
        names = [f"seed {seed}" for seed in both]
        figure.add_trace(go.Scatter(x=[arm.name] * len(found), y=found, text=names, mode="markers", opacity=0.5))
        figure.add_trace(_mean([arm.name], [arm.against.difference.mean], [arm.against.difference.half]))
    figure.add_hline(y=0, line_dash="dot").update_layout(showlegend=False)
    return _laid_out(figure, "", f"{result.plan.metric} minus {result.base.name}'s")


def _tuning(result: ComparisonResult) -> "Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm in result.arms:
        points = [(n, best) for n, best in enumerate(arm.curve, 1) if math.isfinite(best)]
        numbers, values = [n for n, _ in points], [best for _, best in points]
        figure.add_trace(go.Scatter(x=numbers, y=values, mode="lines+markers", name=arm.name))
    return _laid_out(figure, "trials", f"best {result.plan.metric}")


def _mean(x: list[str], y: list[float], half: list[float | None]) -> "Figure":
    import plotly.graph_objects as go

    marker = {"symbol": "line-ew-open", "size": 24}
    return go.Scatter(x=x, y=y, error_y={"type": "data", "array": half}, mode="markers", marker=marker)


def _laid_out(figure: "Figure", x: str, y: str) -> "Figure":
    return figure.update_layout(xaxis_title=x, yaxis_title=y, template="plotly_white", height=480)
