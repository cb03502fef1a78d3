"""What every optimizer of a recipe has."""

from typing import Annotated, Literal

from pydantic import Field

from lowland.trainers.recipe.optimizers.around import AroundOptimizer

Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class PlainOptimizer(AroundOptimizer):
    """An optimizer by itself; fields besides these are the arguments of its class in `lowland.optim.methods`."""

    name: str
    lr: Rate
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay, multiplied by the learning rate at each step."""
    decay: Literal["matrices", "all"] = "matrices"
    """What is decayed: tensors of two or more dimensions, or every tensor."""

    @property
    def method(self) -> str:
        """Its name with what is around it, the outermost first, and without numbers: a checkpoint is of one method."""
        around = [name for name in AroundOptimizer.model_fields if getattr(self, name) is not None]
        return " around ".join([*reversed(around), self._alone])

    @property
    def _alone(self) -> str:
        """The method without what is around it."""
        return self.name
