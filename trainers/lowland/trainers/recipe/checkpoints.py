"""When checkpoints are written and which are kept."""

from typing import Annotated, Literal

from pydantic import Field

from lowland.trainers.recipe.amounts import Amount, SaveInterval
from lowland.trainers.recipe.section import Section


class CheckpointConfig(Section):
    """Checkpoints hold everything a resume needs, by parameter name; one is always written at the end."""

    every: SaveInterval | None = Amount(1000, "steps")
    """Interval in steps, minutes or evaluations; null writes at the end only."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """How many of the latest checkpoints stay."""
    keep_best: Annotated[int, Field(ge=0)] = 1
    """How many of the best checkpoints by `metric` stay besides."""
    metric: str = "eval/loss"
    """Metric of the latest evaluation that `keep_best` ranks by."""
    mode: Literal["min", "max"] = "min"
    """Whether a lower or a higher metric is better."""
    export: bool = True
    """Write the final model as a Hugging Face folder too."""
