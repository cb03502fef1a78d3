"""What can be put around any optimizer; each is a section that is absent by default."""

from lowland.trainers.recipe.section import Section


class AroundOptimizer(Section):
    """The sections, named as in `lowland.optim.methods.AROUND`."""
