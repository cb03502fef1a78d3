"""Methods for spurious correlations, unequal groups and long tails."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.amounts import Amount
from lowland.trainers.recipe.methods.base import MethodSection, NotNegative, Point, Positive, Share


class SpectralDecouplingConfig(MethodSection):
    """A quadratic penalty on logits, instead of weight decay: features that are learnt first starve others less."""

    name: Literal["spectral_decoupling"]
    """Spectral decoupling."""
    strength: NotNegative = 0.01
    """lambda of lambda / 2 |logits - center|^2; 0 is plain training."""
    center: float | tuple[float, ...] = Field(
        default=0.0, json_schema_extra={"allowed": "a number, or a list of numbers"}
    )
    """What logits are drawn to: a number, or one for each class."""


class _OfEnvironments(MethodSection):
    needs_groups: ClassVar[bool] = True

    start: Point = Amount(0, "%")
    """Point of the training from which the penalty holds."""


class VRExConfig(_OfEnvironments):
    """V-REx: the variance of the groups' mean losses is added to the loss."""

    name: Literal["vrex"]
    """Variance of risks."""
    strength: NotNegative = 10.0
    """beta; 0 is plain training."""


class IRMConfig(_OfEnvironments):
    """IRMv1: the squared derivative of each group's loss by a scale of the logits is added to the loss."""

    name: Literal["irm"]
    """Invariant risk minimisation."""
    strength: NotNegative = 100.0
    """lambda; 0 is plain training."""
    unbiased: bool = True
    """Mean over pairs of examples instead of the square of the batch's mean, which is too large for small groups."""


class FixedETFConfig(MethodSection):
    """The classifier is a fixed simplex of equal angles, also between classes that are rare."""

    name: Literal["fixed_etf"]
    """Fixed classifier."""
    loss: Literal["dot_regression", "cross_entropy"] = "dot_regression"
    """Half the squared distance of the cosine with the own class vector from 1, or the task's cross-entropy."""
    scale: Positive = 16.0
    """What cosines are multiplied by to be logits; the loss `dot_regression` does not depend on it."""


class WeightBalancingConfig(MethodSection):
    """Long tails: class-balanced loss, bounded norms of the classifier's rows, training of the classifier alone."""

    name: Literal["weight_balancing"]
    """Weight balancing."""
    beta: Share = 0.0
    """Classes of n examples weigh (1 - beta) / (1 - beta^n): 0 all alike, 1 by the inverse of their number."""
    max_norm: Positive | None = None
    """Largest norm of a class's row of the classifier, kept after every step."""
    max_norm_share: Share | None = None
    """The same as a point between the smallest (0) and the largest (1) norm at the start; usually 0.1."""
    train: Literal["all", "classifier"] = "all"
    """`classifier` freezes all else: the second stage, from a model that was trained with much weight decay."""

    @model_validator(mode="after")
    def _one_bound(self) -> "WeightBalancingConfig":
        if self.max_norm is not None and self.max_norm_share is not None:
            raise ValueError("max_norm and max_norm_share are the same bound said in two ways; remove one")
        return self


class CoBalTConfig(MethodSection):
    """Concepts are found in feature maps, without group labels; images of those rare in a class come more often."""

    eager: ClassVar[bool] = True

    name: Literal["cobalt"]
    """Concept balancing."""
    concepts: Annotated[int, Field(ge=2)] = 8
    """How many are looked for, by k-means over the cells of feature maps."""
    least_share: Share = 0.1
    """Part of an image's cells that are of a concept, from which on the image has it."""
    strength: Share = 1.0
    """An image weighs the mean of n^-strength over its concepts, which n of its class have; 0 is plain training."""
    start: Point = Amount(20, "%")
    """Point at which concepts are found; they are balanced from the next step on."""
    path: str | None = None
    """Folder of a network that lowland exported, whose feature maps are taken; null takes the one that is trained."""


class SpectralRiskConfig(MethodSection):
    """Losses weigh by their rank in the global batch, so that the largest count more."""

    name: Literal["spectral_risk"]
    """Spectral risk."""
    spectrum: Literal["superquantile", "extremile", "esrm"] = "superquantile"
    """Mean of the largest losses (CVaR), expected largest of several, or exponential weights."""
    parameter: NotNegative
    """superquantile: part of the losses left out, below 1; extremile: of how many, at least 1; esrm: rate, above 0."""
    nu: NotNegative = 0.0
    """Strength of the chi-square divergence that draws weights to 1; the larger, the closer to plain training."""

    @model_validator(mode="after")
    def _in_range(self) -> "SpectralRiskConfig":
        value = self.parameter
        wanted = {"superquantile": "below 1", "extremile": "at least 1", "esrm": "above 0"}[self.spectrum]
        right = {"superquantile": value < 1, "extremile": value >= 1, "esrm": value > 0}[self.spectrum]
        if not right:
            raise ValueError(f"parameter of spectrum {self.spectrum} must be {wanted}, but is {value:g}")
        return self


class RationaleInvarianceConfig(MethodSection):
    """Elementwise contributions of features to logits are drawn to their class's mean."""

    whole_weights: ClassVar[bool] = True
    eager: ClassVar[bool] = True

    name: Literal["rationale_invariance"]
    """Rationale invariance."""
    strength: NotNegative = 0.01
    """alpha; 0 is plain training."""
    momentum: float = Field(default=0.001, gt=0, le=1)
    """How far the running mean of a class moves towards that of a batch."""
