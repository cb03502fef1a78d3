"""How the learning rate goes over the training."""

from typing import Annotated, Literal

from pydantic import Field

from lowland.trainers.recipe.amounts import Amount, PartOfTraining
from lowland.trainers.recipe.section import Section


class _Schedule(Section):
    warmup: PartOfTraining = Amount(0, "%")
    """Linear rise from zero at the start: a percentage, steps or tokens."""


class ConstantSchedule(_Schedule):
    """The peak rate after the warm-up."""

    name: Literal["constant"]
    """Constant."""


class LinearSchedule(_Schedule):
    """A straight line from the peak to `final` times the peak."""

    name: Literal["linear"]
    """Linear decay."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rate at the end, as a fraction of the peak."""


class CosineSchedule(_Schedule):
    """Half a cosine from the peak to `final` times the peak."""

    name: Literal["cosine"]
    """Cosine decay."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Rate at the end, as a fraction of the peak."""


class WSDSchedule(_Schedule):
    """Warm-up, stable, decay: the peak rate until a decay at the end."""

    name: Literal["wsd"]
    """Warm-up, stable, decay."""
    cooldown: PartOfTraining = Amount(20, "%")
    """Length of the final decay: a percentage, steps or tokens."""
    shape: Literal["linear", "sqrt"] = "sqrt"
    """Shape of the final decay: straight, or 1 - sqrt(progress)."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rate at the end, as a fraction of the peak."""


ScheduleConfig = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | WSDSchedule, Field(discriminator="name")
]
