"""The optimizers, one model each; `name` tells them apart.

A new optimizer is one class here and one builder in `lowland.trainers.optimizers`.
"""

from typing import Annotated, Literal

from pydantic import Field

from lowland.trainers.recipe.section import Section

Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Optimizer(Section):
    lr: Rate
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay, multiplied by the learning rate at each step."""
    decay: Literal["matrices", "all"] = "matrices"
    """What is decayed: tensors of two or more dimensions, or every tensor."""


class AdamWConfig(_Optimizer):
    """AdamW (Loshchilov and Hutter, 2019), torch's fused implementation: 8 bytes of state per parameter."""

    name: Literal["adamw"]
    """AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the first and the second moment."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""


class SGDConfig(_Optimizer):
    """SGD with momentum: 4 bytes of state per parameter, none without momentum."""

    name: Literal["sgd"]
    """SGD with momentum; its weight decay is the coupled L2 penalty."""
    momentum: Fraction = 0.9
    """Heavy-ball momentum."""
    nesterov: bool = False
    """Look ahead along the momentum."""


class AdaTAMWConfig(_Optimizer):
    """AdaTAMW, AdamW with torque-aware momentum (Malviya et al., 2024): 8 bytes of state per parameter.

    It has no (1 - beta1) factor: start from a fifth to a tenth of AdamW's rate, with warm-up.
    """

    name: Literal["adatamw"]
    """AdaTAMW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the momentum and of the second moment."""
    gamma: Fraction = 0.9
    """Smoothing of the cosine between momentum and gradient."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""
    damping_floor: Annotated[float, Field(ge=0)] = 1e-8
    """Least damping of the gradient (epsilon in the paper)."""
    scope: Literal["global", "group", "tensor"] = "global"
    """Over what the cosine is taken: the whole model, a parameter group, or each tensor."""


OptimizerConfig = Annotated[AdamWConfig | SGDConfig | AdaTAMWConfig, Field(discriminator="name")]
