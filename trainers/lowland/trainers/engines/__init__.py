"""How a model and its optimizer are spread over the workers; the only package that knows DeepSpeed."""

from lowland.trainers.engines.build import build_engine
from lowland.trainers.engines.engine import Engine, Inputs, StatePiece, StepOutcome

__all__ = ["Engine", "Inputs", "StatePiece", "StepOutcome", "build_engine"]
