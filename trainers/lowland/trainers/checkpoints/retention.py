"""Which checkpoints stay."""

import math
from collections.abc import Mapping

from lowland.trainers.recipe import CheckpointConfig


def to_remove(metrics: Mapping[int, float | None], config: CheckpointConfig) -> list[int]:
    """Steps whose checkpoints go: all but the `keep_last` latest and the `keep_best` best.

    Args:
        metrics: the ranking metric of every committed checkpoint by step; None where it has none; nan is no rank.
        config: the retention rules.
    """
    latest = sorted(metrics)[-config.keep_last :]
    sign = 1 if config.mode == "min" else -1
    ranked = sorted(
        (sign * value, step) for step, value in metrics.items() if value is not None and not math.isnan(value)
    )
    best = [step for _, step in ranked[: config.keep_best]]
    return sorted(set(metrics) - set(latest) - set(best))
