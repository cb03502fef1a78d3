"""Optimizers that treat each element by itself."""

from typing import Annotated, Literal

from pydantic import Field

from lowland.trainers.recipe.optimizers.base import Fraction, PlainOptimizer, Rate

Share = Annotated[float, Field(gt=0, le=1)]
Power = Annotated[float, Field(ge=0)]


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


class LionConfig(PlainOptimizer):
    """Lion (Chen et al., 2023), steps by the sign of a momentum: 4 bytes of state per parameter.

    Start from a third to a tenth of AdamW's rate, and three to ten times its weight decay.
    """

    name: Literal["lion"]
    """Lion."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """Share of the momentum in the step, and its decay."""


class ScheduleFreeAdamWConfig(PlainOptimizer):
    """Schedule-Free AdamW (Defazio et al., 2024), evaluated at an average: 8 bytes of state per parameter.

    Its schedule is constant, with warm-up.  Start from one to ten times AdamW's rate.
    """

    name: Literal["schedule_free_adamw"]
    """Schedule-Free AdamW."""
    betas: tuple[Share, Fraction] = (0.9, 0.999)
    """Share of the average in the point where gradients are taken, and decay of the second moment."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""
    r: Power = 0.0
    """Power of the step in the weights of the average."""
    rate_power: Power = 2.0
    """Power of the largest rate so far in the weights of the average."""


class ScheduleFreeSGDConfig(PlainOptimizer):
    """Schedule-Free SGD (Defazio et al., 2024), evaluated at an average: 4 bytes of state per parameter.

    Its schedule is constant, with warm-up.  Start from 10 to 50 times the rate of SGD with momentum.
    """

    name: Literal["schedule_free_sgd"]
    """Schedule-Free SGD."""
    beta: Share = 0.9
    """Share of the average in the point where gradients are taken."""
    r: Power = 0.0
    """Power of the step in the weights of the average."""
    rate_power: Power = 2.0
    """Power of the largest rate so far in the weights of the average."""
