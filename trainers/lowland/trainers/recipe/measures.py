"""What is measured of a training besides its losses."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lowland.trainers.recipe.amounts import Amount, Interval
from lowland.trainers.recipe.section import Section

MeasureName = Literal[
    "gradient_momentum_cosine",
    "sharpness",
    "top_eigenvalue",
    "effective_rank",
    "weight_movement",
    "representation",
    "ntk",
    "difficulty",
    "groups",
]

_CURVATURE = ("sharpness", "top_eigenvalue")


class MeasuresConfig(Section):
    """Measures of weights, gradients and curvature, recorded as `measure/...`; none of them changes the training."""

    NEEDS_FP32: ClassVar[str] = (
        "looks at displacements of weights that bf16 rounds away; remove it or set model.dtype: float32"
    )

    names: Annotated[tuple[MeasureName, ...], Field(min_length=1)]
    """What to measure; `docs/measures.md` says what each is and costs."""
    every: Interval = Amount(500, "steps")
    """Interval between measurements; one is also taken before the first step and after the last."""
    batches: Annotated[int, Field(ge=1)] = 1
    """Global batches, the first of the training's, on which losses, gradients and features are taken."""
    rho: Annotated[float, Field(gt=0)] = 0.05
    """Distance in weight space at which `sharpness` looks."""
    iterations: Annotated[int, Field(ge=1)] = 10
    """Products with the Hessian that `top_eigenvalue` takes, each of two gradients of the batches."""
    examples: Annotated[int, Field(ge=2)] = 16
    """Examples of the batches between which `ntk` is taken, whose gradients each worker holds all at once."""

    def rounded_in_bf16(self) -> str | None:
        """The first measure that a model computing in bf16 cannot have; None if there is none."""
        return next((name for name in self.names if name in _CURVATURE), None)
