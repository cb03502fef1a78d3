"""When and on how much the model is evaluated."""

from typing import Annotated

from pydantic import Field

from lowland.trainers.recipe.amounts import Amount, Interval
from lowland.trainers.recipe.section import Section


class EvaluationConfig(Section):
    """Evaluation on the held-out split, always the same sequences, and once more at the end."""

    every: Interval | None = Amount(500, "steps")
    """Interval between evaluations; null evaluates at the end only."""
    skip_sequences: Annotated[int, Field(ge=0)] = 0
    """Leave out the first n held-out sequences, as those by which something was chosen."""
    max_sequences: Annotated[int, Field(ge=1)] | None = None
    """Use only the first n held-out sequences after these; null uses all."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Sequences per worker in one forward pass; null takes the training's."""


class ImageEvaluationConfig(Section):
    """Evaluation on the held-out images, always the same ones, and once more at the end."""

    every: Interval | None = Amount(1, "epochs")
    """Interval between evaluations; null evaluates at the end only."""
    max_images: Annotated[int, Field(ge=1)] | None = None
    """Use n of the held-out images, always the same random ones; null uses all."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Images per worker in one forward pass; null takes the training's."""
    pictures: bool = True
    """At the end, a picture of the confusion matrix and one of mistakes, kept with the run."""
