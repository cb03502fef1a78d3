"""Pictures of losses on lines and planes."""

import io
import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

SPREAD = 10.0
"""How often the highest loss must hold the lowest for a plane to be coloured by its logarithm."""

Columns = Mapping[str, Sequence[float | bool]]


def picture(title: str, columns: Columns, metric: str) -> bytes:
    """A PNG of a metric over the coordinates that the columns have.

    Args:
        title: above it.
        columns: `alpha` alone, `alpha` and `beta` as a full grid, or `t` and `matched`; and the metric.
        metric: what is drawn; values that are not finite are left blank.
    """
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    if "beta" in columns:
        _plane(figure, axes, columns, metric)
    else:
        _lines(axes, columns, metric)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _lines(axes: Axes, columns: Columns, metric: str) -> None:
    values = [float(value) for value in columns[metric]]
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    if "alpha" in columns:
        axes.plot([float(x) for x in columns["alpha"]], values, marker=".")
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_xlabel("distance in norms of the filters")
        return
    axes.set_xlabel("from the first run (0) to the second (1)")
    rows = list(zip(columns["matched"], columns["t"], values, strict=True))
    for matched in dict.fromkeys(matched for matched, _, _ in rows):
        line = [(float(t), value) for m, t, value in rows if m == matched]
        axes.plot(*zip(*line, strict=True), marker=".", label="units matched" if matched else "as they are")
    axes.legend()


def _plane(figure: Figure, axes: Axes, columns: Columns, metric: str) -> None:
    first, second = (sorted({float(x) for x in columns[name]}) for name in ("alpha", "beta"))
    # Rows of the columns run through beta first; a picture's rows are its second axis.
    values = [float(v) if math.isfinite(float(v)) else math.nan for v in columns[metric]]
    grid = [[values[i * len(second) + j] for i in range(len(first))] for j in range(len(second))]
    finite = [value for value in values if not math.isnan(value)] or [1.0]
    low, high = min(finite), max(finite)
    norm = LogNorm(low, high) if 0 < SPREAD * low < high else Normalize(low, high)
    colours = axes.pcolormesh(first, second, grid, norm=norm, cmap="viridis", shading="nearest")
    if high > low:
        levels = [float(norm.inverse(step / 12)) for step in range(1, 12)]
        axes.contour(first, second, grid, levels=levels, colors="white", linewidths=0.6)
    axes.plot([0], [0], marker="+", color="red")
    axes.set_xlabel("first direction")
    axes.set_ylabel("second direction")
    axes.set_aspect("equal")
    figure.colorbar(colours, label=metric)
