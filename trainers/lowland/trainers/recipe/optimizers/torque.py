"""Torque-Aware Momentum."""

from typing import Annotated, Literal

from pydantic import Field

from lowland.trainers.recipe.optimizers.base import Fraction, PlainOptimizer, Rate


class _TorqueAware(PlainOptimizer):
    gamma: Fraction = 0.9
    """Smoothing of the cosine between momentum and gradient."""
    damping_floor: Annotated[float, Field(ge=0)] = 1e-8
    """Least damping of the gradient (epsilon in the paper)."""
    scope: Literal["global", "group", "tensor"] = "global"
    """Over what the cosine is taken: the whole model, a parameter group, or each tensor."""


class TAMConfig(_TorqueAware):
    """TAM, SGD with torque-aware momentum (Malviya et al., 2024): 4 bytes of state per parameter.

    Start from the rate of SGD with momentum.
    """

    name: Literal["tam"]
    """TAM."""
    momentum: Fraction = 0.9
    """Decay of the momentum."""


class AdaTAMWConfig(_TorqueAware):
    """AdaTAMW, AdamW with torque-aware momentum (Malviya et al., 2024): 8 bytes of state per parameter.

    It has no (1 - beta1) factor: start from a fifth to a tenth of AdamW's rate, with warm-up.
    """

    name: Literal["adatamw"]
    """AdaTAMW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the momentum and of the second moment."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""
