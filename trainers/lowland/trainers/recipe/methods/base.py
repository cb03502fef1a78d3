"""What every training method of a recipe has."""

from typing import Annotated, ClassVar

from pydantic import Field

from lowland.trainers.recipe.amounts import Amount, Units
from lowland.trainers.recipe.section import Section

Point = Annotated[Amount, Units("%", "steps", "epochs")]
"""A point of the training, counted from its start."""
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class MethodSection(Section):
    """A method; `name` tells which."""

    needs_groups: ClassVar[bool] = False
    """Whether it is about groups, which `data.group_column` gives."""
    whole_weights: ClassVar[bool] = False
    """Whether it computes with weights outside of the layer that holds them, which ZeRO stage 3 does not allow."""
    eager: ClassVar[bool] = False
    """Whether it looks into the network while it computes, which torch.compile would not see."""

    name: str
