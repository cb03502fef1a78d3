"""Trainings in which ZeRO takes the gradient norm from the optimizer, as it does on GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.training import Outcome, inside, outcome

from lowland.optim import LayoutOptimizer
from lowland.trainers.engines import deepspeed_engine
from lowland.trainers.engines.zero_speed import hand_on_norm


def handed_on(data: Path, folder: Path, changes: dict[str, Any]) -> tuple[Outcome, int]:
    """A training with the norm handed on, and how often ZeRO's own norm was asked for all the same."""
    asked = [0]
    with _handing_on(asked):
        return outcome(data, folder, changes), asked[0]


def handed_on_spoiled(data: Path, folder: Path, changes: dict[str, Any], *spoiled: Any) -> Outcome:
    """The same while some gradients are not finite."""
    with _handing_on([0]):
        return inside(data, folder, changes, "not_finite", *spoiled)


@contextmanager
def _handing_on(asked: list[int]) -> Iterator[None]:
    plain = deepspeed_engine.batch_gradient_checks

    def checks(engine: Any, optimizer: LayoutOptimizer) -> None:
        zero = engine.optimizer
        name = "scaled_global_norm" if hasattr(zero, "scaled_global_norm") else "_get_norm_groups"
        own = getattr(zero, name)

        def counted(*arguments: Any, **keywords: Any) -> Any:
            asked[0] += 1
            return own(*arguments, **keywords)

        setattr(zero, name, counted)
        hand_on_norm(zero, optimizer)

    deepspeed_engine.batch_gradient_checks = checks  # type: ignore[assignment]
    try:
        yield
    finally:
        deepspeed_engine.batch_gradient_checks = plain
