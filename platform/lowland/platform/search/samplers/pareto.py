"""Quality against cost: the front of what was tried (the idea of CARBS, Fetterman et al., arXiv 2306.08055)."""

import numpy as np

from lowland.platform.search.samplers.gaussian_process import Array


def front(log_costs: Array, values: Array) -> Array:
    """Indices of trials that no other beats in both, cheapest first."""
    chosen = list[int]()
    for index in np.lexsort((values, log_costs)):
        if not chosen or values[index] < values[chosen[-1]]:
            chosen.append(int(index))
    return np.array(chosen, dtype=np.int64)


def drawn(log_costs: Array, values: Array, generator: np.random.Generator) -> int:
    """Index of the trial on the front whose cost is nearest to one that is drawn evenly, in its logarithm, along it."""
    best = front(log_costs, values)
    at = generator.uniform(log_costs[best[0]], log_costs[best[-1]])
    return int(best[np.abs(log_costs[best] - at).argmin()])


def front_value(
    log_costs: Array, values: Array, at: Array, generator: np.random.Generator, least: float | None = None
) -> Array:
    """The best value that at most these costs gave, or that a cost drawn along the front did, whichever is lower.

    The drawn cost makes cheap parameters, that nothing of their cost can be compared to, no easy win each time.

    Args:
        log_costs: of what was tried, [n].
        values: lower is better, [n].
        at: logarithms of costs, [m].
        generator: draws the cost.
        least: its logarithm, if it was drawn.
    """
    best = front(log_costs, values)
    costs, front_values = log_costs[best], values[best]
    if least is None:
        least = generator.uniform(costs[0], costs[-1])
    places = np.searchsorted(costs, np.maximum(at, least), side="right") - 1
    result: Array = front_values[np.maximum(places, 0)]
    return result


def scaling(log_costs: Array, values: Array, points: Array) -> tuple[Array, Array]:
    """How parameters grow along the front: slope and intercept of each in the logarithm of the cost.

    Args:
        log_costs: [n]
        values: lower is better, [n].
        points: logarithms of scale parameters, others as they are, [n, d].

    Returns:
        Slopes and intercepts, [d] each; the slopes are 0 while the front has fewer than three costs.
    """
    best = front(log_costs, values)
    if len(best) < 3:
        return np.zeros(points.shape[1]), points[best].mean(0)
    slopes, intercepts = np.polyfit(log_costs[best], points[best], 1)
    return slopes, intercepts
