"""Methods for several losses, which here are those of the groups."""

from typing import ClassVar, Literal

from lowland.trainers.recipe.amounts import Amount
from lowland.trainers.recipe.methods.base import MethodSection, Point


class IGBConfig(MethodSection):
    """Improvable gap balancing: groups whose loss has fallen least, measured by a base epoch, count most."""

    needs_groups: ClassVar[bool] = True

    name: Literal["igb"]
    """Improvable gap balancing."""
    base_start: Point = Amount(1, "epochs")
    """Point from which the base losses are averaged."""
    base_end: Point = Amount(2, "epochs")
    """Point from which they are used; before it the sum of log losses is minimised."""


class ConFIGConfig(MethodSection):
    """The gradients of the groups' losses are combined to a direction that makes equal angles with all of them."""

    needs_groups: ClassVar[bool] = True

    name: Literal["conflict_free"]
    """ConFIG: conflict-free gradients; a forward and backward pass for each group."""
