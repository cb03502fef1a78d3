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


class SOAPConfig(PlainOptimizer):
    """SOAP, Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., 2024).

    8 bytes of state per parameter, and 8 n^2 for each rotated dimension of n.
    """

    name: Literal["soap"]
    """SOAP."""
    betas: tuple[Fraction, Fraction] = (0.95, 0.95)
    """Decay of the first and the second moment."""
    shampoo_beta: Fraction | None = None
    """Decay of the preconditioner (null: that of the second moment)."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""
    precondition_frequency: Annotated[int, Field(ge=1)] = 10
    """Steps from one refresh of the eigenbasis to the next."""
    max_precondition_dim: Annotated[int, Field(ge=0)] = 10_000
    """Dimensions longer than this are not rotated."""


class RotatedAdamConfig(PlainOptimizer):
    """Adam in rotated coordinates (Zhang, Maes et al., 2024), to see how much a training depends on the basis.

    8 bytes of state per parameter; basis `svd` 4 (m^2 + n^2) more for a matrix of m x n.
    """

    name: Literal["rotated_adam"]
    """Adam in rotated coordinates."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the first and the second moment."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""
    basis: Literal["standard", "output", "input", "layer", "svd"] = "output"
    """What is turned together: nothing, each row, each column, the whole tensor, or both sides by a gradient's SVD."""
    block: Annotated[int, Field(ge=1)] = 768
    """Most elements that one random rotation matrix turns."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random bases."""
    refresh: Annotated[int, Field(ge=1)] = 250
    """Steps from one decomposition to the next, for basis `svd`."""
    max_dim: Annotated[int, Field(ge=0)] = 10_000
    """Sides longer than this are not turned by basis `svd`."""
    diagnose: Annotated[int, Field(ge=1)] | None = None
    """Every how many steps the updates' singular values are measured (null: never)."""
