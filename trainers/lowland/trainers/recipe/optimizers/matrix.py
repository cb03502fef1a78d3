"""Optimizers that need whole matrices."""

from typing import Annotated, Literal

from pydantic import Field

from lowland.trainers.recipe.optimizers.base import Fraction, PlainOptimizer, Rate


class AdafactorConfig(PlainOptimizer):
    """Adafactor (Shazeer and Stern, 2018), torch's implementation: rows and columns of second moments alone."""

    name: Literal["adafactor"]
    """Adafactor."""
    beta2_decay: Annotated[float, Field(lt=0)] = -0.8
    """Exponent of the step in the decay of the second moment."""
    eps: tuple[Rate | None, Rate] = (None, 1e-3)
    """Added to squared gradients (null: the type's own); least root mean square of weights that scales steps."""
    d: Annotated[float, Field(ge=1)] = 1.0
    """Clipping threshold of the update's root mean square."""


class MuonConfig(PlainOptimizer):
    """Muon (Jordan et al., 2024), torch's implementation: for matrices alone, so use it inside `mixed`."""

    name: Literal["muon"]
    """Muon."""
    momentum: Fraction = 0.95
    """Decay of the momentum."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations that orthogonalise the momentum."""
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    """How a matrix's shape scales the rate: as published, or so that AdamW's rate and decay can be used."""
