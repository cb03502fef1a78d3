"""Constraints, and how their multipliers are found."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.amounts import Amount
from lowland.trainers.recipe.methods.base import MethodSection, NotNegative, Point, Positive, Share
from lowland.trainers.recipe.section import Section

Below1 = Annotated[float, Field(ge=0, lt=1)]


class NuPIConfig(Section):
    """A controller with an integral and a smoothed proportional term."""

    name: Literal["nupi"]
    """nuPI."""
    lr: Positive = 0.01
    """Rate of all that follows."""
    ki: NotNegative = 1.0
    """Integral gain: how much a violation adds to its multiplier."""
    kp: float = 0.0
    """Proportional gain: how much a growing violation adds; damps oscillation."""
    nu: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    """Decay of the average whose growth that is."""
    start: Literal["zeros", "first"] = "first"
    """Average before the first step: 0, or the first violation."""


class AscentConfig(Section):
    """Gradient ascent."""

    name: Literal["ascent"]
    """Ascent."""
    lr: Positive = 0.01
    """How much a violation adds to its multiplier."""


class AdamAscentConfig(Section):
    """Ascent by Adam."""

    name: Literal["adam"]
    """Adam."""
    lr: Positive = 0.01
    """Learning rate."""
    betas: tuple[Below1, Below1] = (0.9, 0.999)
    """Decays of the moments."""


MultipliersConfig = Annotated[NuPIConfig | AscentConfig | AdamAscentConfig, Field(discriminator="name")]


class ConstraintConfig(Section):
    """A bound on a mean over the examples of a batch; exactly one of at_most, at_least and equals."""

    metric: Literal["loss", "error", "chance"]
    """Loss (nats), share of wrong predictions, or probability that is given to `of_class`."""
    group: int | str | None = None
    """Examples of this group alone: its number or name."""
    label: int | str | None = None
    """Examples of this class alone: its number or name."""
    of_class: int | str | None = None
    """The class of `chance`: its number or name."""
    less_all: bool = False
    """Bound the difference to the mean over the whole batch."""
    at_most: float | None = None
    """Upper bound."""
    at_least: float | None = None
    """Lower bound."""
    equals: float | None = None
    """Value to be met."""

    @model_validator(mode="after")
    def _one_bound(self) -> "ConstraintConfig":
        given = [name for name in ("at_most", "at_least", "equals") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of at_most, at_least, equals; given: {' and '.join(given) or 'none'}")
        if (self.metric == "chance") != (self.of_class is not None):
            raise ValueError("of_class is needed by metric: chance, and by no other")
        return self


class ConstraintsConfig(MethodSection):
    """Training under constraints, by Lagrange multipliers."""

    name: Literal["constraints"]
    """Constraints."""
    subject_to: Annotated[tuple[ConstraintConfig, ...], Field(min_length=1)]
    """The constraints."""
    multipliers: MultipliersConfig = NuPIConfig(name="nupi")
    """How multipliers follow violations."""
    start: Point = Amount(0, "%")
    """Point of the training from which they act."""

    def of_groups(self) -> bool:
        """Whether a constraint is about a group."""
        return any(one.group is not None for one in self.subject_to)


class CEAGConfig(MethodSection):
    """No group may lose more accuracy by pruning than the groups on average; beside a method that prunes."""

    needs_groups: ClassVar[bool] = True

    name: Literal["ceag"]
    """Excess accuracy gaps."""
    tolerance: Share = 0.01
    """Largest excess loss of a group's accuracy."""
    start: Point
    """Where sparsity begins: the dense model's accuracies are taken there, and constraints act from there on."""
    window: Annotated[int, Field(ge=1)] = 40
    """Latest training examples of a group that its accuracy is taken over."""
    dense_accuracy: tuple[Share, ...] | None = None
    """Accuracy of each group of the dense model; null takes the window's at `start`."""
    multipliers: MultipliersConfig = AscentConfig(name="ascent")
    """How multipliers follow violations."""
