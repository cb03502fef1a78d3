"""How a model and its optimizer are spread over the workers; the only package that knows DeepSpeed."""

from typing import Any

from lowland.trainers.engines.build import build_engine
from lowland.trainers.engines.engine import Engine, Inputs, StatePiece
from lowland.trainers.engines.outcome import StepOutcome, UnreadOutcome

__all__ = ["Engine", "Inputs", "StatePiece", "StepOutcome", "UnreadOutcome", "attach", "build_engine"]


def __getattr__(name: str) -> Any:
    """`attach`, on demand: DeepSpeed takes seconds to import."""
    if name == "attach":
        from lowland.trainers.engines.own_loop import attach

        return attach
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
