"""Weight-sharing regularisation."""

from typing import Annotated

from pydantic import Field

from lowland.trainers.recipe.section import Section


class WeightSharingConfig(Section):
    """Weights drawn together after each step, until many are equal (Shakerinava et al., 2023).

    No state; each chosen tensor is put together at one worker and sorted.
    """

    strength: Annotated[float, Field(ge=0)]
    """How much the penalty weighs against the loss; a step draws the outermost weights in by this times the rate."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """Weights smaller than this become zero and others smaller by it, in each step; not multiplied by the rate."""
    damping: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the movement that is left out; above 0, weights that met come closer but are not yet equal."""
    tensors: Annotated[str, Field(min_length=1)] | None = None
    """Regular expression searched for in parameter names (null: every tensor of two or more dimensions)."""
