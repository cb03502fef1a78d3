"""Weights that are averaged: over steps, and over workers that train apart."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lowland.trainers.recipe.amounts import Amount, HalfLife
from lowland.trainers.recipe.section import Section


class EMAConfig(Section):
    """Moving average of the weights, for evaluation and export: 4 bytes per parameter, 2 in bfloat16."""

    half_life: HalfLife
    """Training after which a step's weights count half; in samples or tokens it holds for any batch size."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the average is kept in; bfloat16 is rounded so that it is right on average."""
    cpu: bool = False
    """Keep the average in host memory."""

    @field_validator("half_life")
    @classmethod
    def _some(cls, half_life: Amount) -> Amount:
        if half_life.value == 0:
            raise ValueError("must be more than 0; without an average remove the section ema")
        return half_life


class DiLoCoConfig(Section):
    """An outer Nesterov step on what many steps moved (Douillard et al., 2023): 8 bytes per parameter.

    Evaluation and export are at the weights of the last outer step.
    """

    every: Annotated[int, Field(ge=1)] = 30
    """Inner steps between two outer steps."""
    lr: Annotated[float, Field(gt=0)] = 0.4
    """Outer learning rate: about 0.4 for one group, 0.6 for two to four, 0.8 for eight."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the outer momentum."""
    groups: Annotated[int, Field(ge=1)] = 1
    """Worker groups that exchange no gradients between outer steps; more than one needs engine torch."""
