"""Methods that make a network smaller."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.amounts import Amount, Units
from lowland.trainers.recipe.methods.base import MethodSection, NotNegative, Point, Positive
from lowland.trainers.recipe.optimizers.mixed import Kind


class MagnitudePruningConfig(MethodSection):
    """The smallest weights, or units, become 0 and stay so: at once, in rounds with rewinding, or gradually."""

    name: Literal["magnitude_pruning"]
    """Magnitude pruning."""
    sparsity: Annotated[float, Field(ge=0, lt=1)]
    """Share of prunable weights, or units, that are 0 at the end; 0 is plain training."""
    structure: Literal["weights", "units"] = "weights"
    """Unstructured; or structured: whole units, by the L1 norm of their weights, which the export leaves out."""
    dense: Point = Amount(50, "%")
    """Point until which nothing is pruned, at least one step: iterative rounds begin there, gradual ones after it."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """Prunings; one is one-shot."""
    shape: Literal["iterative", "gradual"] = "iterative"
    """Each round takes the same share of what is left, until the end; or a cubic curve that ends at `end`."""
    end: Point | None = None
    """gradual: point of the last pruning."""
    scope: Literal["global", "tensor"] = "global"
    """Over what sizes are compared: all, norms of units over their layer's mean; or within each tensor or layer."""
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("matrices", "tensors")
    """weights: kinds of tensors that are pruned."""
    rewind: Literal["none", "learning_rate", "weights"] = "none"
    """After each round begin the schedule anew, and with `weights` also go back to early weights."""
    rewind_to: Point = Amount(1, "steps")
    """weights: point of the training that weights go back to, at least one step."""

    @model_validator(mode="after")
    def _of_shape(self) -> "MagnitudePruningConfig":
        if (self.end is not None) != (self.shape == "gradual"):
            raise ValueError("end is needed by shape: gradual, and by no other")
        if self.shape == "gradual" and self.rewind != "none":
            raise ValueError(
                f"rewind: {self.rewind} goes with shape: iterative, whose rounds are trainings of their own"
            )
        if self.rewind_to != type(self).model_fields["rewind_to"].default and self.rewind != "weights":
            raise ValueError("rewind_to is of rewind: weights; remove it")
        if self.kinds != type(self).model_fields["kinds"].default and self.structure == "units":
            raise ValueError("kinds are of structure: weights; remove them")
        return self


class DemPConfig(MethodSection):
    """Units are pushed to where their ReLU is always 0, and dead ones are taken out; for lowland's ResNets."""

    whole_weights: ClassVar[bool] = True
    eager: ClassVar[bool] = True

    name: Literal["demp"]
    """Dead units pruned."""
    strength: NotNegative = 0.1
    """Peak of the factor of the penalty, the sum of |scale| of the norms before these ReLUs."""
    noise: NotNegative = 5e-5
    """Peak of the deviation of the noise that is added to the weights of live units after each step."""
    span: Point = Amount(85, "%")
    """Length of the cycle in which both rise and fall."""
    every: Annotated[Amount, Units("steps", "epochs")] = Amount(5, "epochs")
    """Interval between removals of units that let nothing through in the whole of it."""


class OPTINConfig(MethodSection):
    """Heads and neurons whose removal changes the rest least are taken out, once; for vision transformers."""

    whole_weights: ClassVar[bool] = True
    eager: ClassVar[bool] = True

    name: Literal["optin"]
    """OPTIN."""
    flops: Annotated[float, Field(gt=0, le=1)]
    """Multiplications that are left, as a share of the whole network's; 1 takes out nothing."""
    at: Point = Amount(100, "%")
    """Point of the training after which it is done, at least one step; 100 % is the end, before the last evaluation."""
    images: Annotated[int, Field(ge=1)] = 32
    """Training images by which heads and neurons are scored."""
    balance: Positive = 10.0
    """How many times as much the mean change of the blocks' outputs weighs as that of the predictions."""
