"""What can be put around any optimizer; each is a section that is absent by default."""

from pydantic import model_validator

from lowland.trainers.recipe.optimizers.averaging import DiLoCoConfig, EMAConfig
from lowland.trainers.recipe.optimizers.nowcast import NowcastConfig
from lowland.trainers.recipe.optimizers.sam import LookbehindConfig, SAMConfig
from lowland.trainers.recipe.optimizers.weight_sharing import WeightSharingConfig
from lowland.trainers.recipe.section import Section


class AroundOptimizer(Section):
    """The sections, named as in `lowland.optim.methods.AROUND`."""

    weight_sharing: WeightSharingConfig | None = None
    """Weights drawn together after each step, until many are equal."""
    nowcast: NowcastConfig | None = None
    """Jumps of the weights to where their trajectory seems to lead."""
    sam: SAMConfig | None = None
    """Gradients from where the loss around the weights is highest; not with `lookbehind`."""
    lookbehind: LookbehindConfig | None = None
    """Several ascent steps behind one descent; not with `sam`, which it has inside."""
    diloco: DiLoCoConfig | None = None
    """An outer momentum step after many steps, over worker groups that train apart or alone."""
    ema: EMAConfig | None = None
    """Moving average of the weights, to evaluate and export at."""

    @model_validator(mode="after")
    def _one_ascent(self) -> "AroundOptimizer":
        if self.sam is not None and self.lookbehind is not None:
            raise ValueError(
                "sam and lookbehind exclude each other: both say where a step's gradients are taken, and lookbehind "
                "with k: 1 and alpha: 1 is sam; remove one"
            )
        return self
