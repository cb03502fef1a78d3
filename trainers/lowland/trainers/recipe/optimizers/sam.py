"""Optimizers that take gradients where the loss around the weights is high."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.section import Section

NotNegative = Annotated[float, Field(ge=0)]


class _Ascent(Section):
    rho: NotNegative = 0.05
    """Length of an ascent step, over all trainable tensors; about ten times as much for ASAM."""
    adaptive: Literal["none", "all", "matrices", "named_weight"] = "none"
    """Tensors whose perturbation scales with |w| (ASAM); `matrices`: two dimensions or more; by name: as published."""
    eta: NotNegative = 0.01
    """Added to |w| in those tensors."""


class SAMConfig(_Ascent):
    """SAM, ASAM, GSAM and F-SAM: one extra pass per step, no state; within a step 4 bytes per parameter."""

    every: Annotated[int, Field(ge=1)] = 1
    """Only each so many steps are perturbed; the others are plain."""
    per_rank: bool = False
    """Each rank perturbs by its own part of the batch (m-sharpness); needs engine torch or ZeRO stage 0."""
    gsam_alpha: NotNegative = 0.0
    """GSAM: how much of the first gradient's part across the second is taken off; 0 is SAM."""
    fsam_sigma: NotNegative = 0.0
    """F-SAM: how much of the gradients' moving average is taken off before perturbing, usually 1; 0 is SAM."""
    fsam_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """F-SAM: decay of that average, 4 bytes per parameter."""

    @model_validator(mode="after")
    def _consistent(self) -> "SAMConfig":
        for name in ("gsam_alpha", "fsam_sigma"):
            if self.per_rank and getattr(self, name):
                raise ValueError(
                    f"per_rank: true gives each rank its own gradient, which {name}: {getattr(self, name)} needs "
                    f"averaged: set per_rank: false or {name}: 0"
                )
        return self


class LookbehindConfig(_Ascent):
    """Lookbehind over SAM or ASAM: k extra passes per step, no state; within a step 8 to 12 bytes per parameter."""

    k: Annotated[int, Field(ge=1)] = 2
    """Ascent steps, each followed by a step of the fast weights."""
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["adaptive"] = "adaptive"
    """How far the weights follow the fast ones; `adaptive`: by the cosine of their first and their last move."""
    scope: Literal["tensor", "global"] = "tensor"
    """Over what that cosine is taken."""
