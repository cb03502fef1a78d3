"""Optimizers that treat each element by itself."""

from typing import Literal

from lowland.trainers.recipe.optimizers.base import Fraction, PlainOptimizer, Rate


class AdamWConfig(PlainOptimizer):
    """AdamW (Loshchilov and Hutter, 2019), torch's fused implementation: 8 bytes of state per parameter."""

    name: Literal["adamw"]
    """AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the first and the second moment."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""


class SGDConfig(PlainOptimizer):
    """SGD with momentum: 4 bytes of state per parameter, none without momentum."""

    name: Literal["sgd"]
    """SGD with momentum; its weight decay is the coupled L2 penalty."""
    momentum: Fraction = 0.9
    """Heavy-ball momentum."""
    nesterov: bool = False
    """Look ahead along the momentum."""
