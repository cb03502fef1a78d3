"""Learning rates carried from one training to another: where to look first, never what is true.

With ratios r = there / here, a rate eta that is good here suggests eta * r^e there:

    quantity                       e of adaptive methods   e of the others   standard error of e
    width (hidden size)            -1                       0                1/3
    batch (tokens per step)        1/2                      1                1/4 and 1/2
    tokens (of the training)       -0.32                   -0.32             1/4

Width: muP (Yang et al., arXiv 2203.03466): hidden matrices under Adam want 1/width, under SGD a constant.  It holds
with muP's initialisation and multipliers; at the usual ones fits over model sizes fall less, as N^(-1/3) (Porian et
al., arXiv 2406.19146), which is width^(-2/3) at constant depth.
Batch: square root for Adam (Malladi et al., arXiv 2205.10287), linear for SGD (Goyal et al., arXiv 1706.02677); both
end at the critical batch size (McCandlish et al., arXiv 1812.06162), beyond which the rate no longer grows.
Tokens: D^(-0.32) at a constant batch (Bjorck et al., arXiv 2409.19913).  Unsettled: the bound of convex theory falls as
D^(-1/2) (Schaipp et al., arXiv 2501.18965), and Li et al. (arXiv 2503.04715) find next to no fall.

Published fits differ by factors of two to four; hence the standard errors, which lower a prior's confidence.  None of
the rules knows of warm-up, schedule, depth, data or weight decay.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowland.search_spaces.part import Part

Family = Literal["adaptive", "plain"]
"""Whether steps are divided by the size of gradients: AdamW, Lion, Muon and their kin; or not: SGD, TAM."""

Positive = Annotated[float, Field(gt=0)]


class Setting(Part):
    """What of a training the rules depend on; what is not given is not transferred."""

    width: Positive | None = None
    """Hidden size of the model."""
    batch: Positive | None = None
    """Tokens per optimizer step."""
    tokens: Positive | None = None
    """Tokens of the whole training."""

    @model_validator(mode="after")
    def _some(self) -> "Setting":
        if not self.given:
            raise ValueError("give at least one of width, batch, tokens")
        return self

    @property
    def given(self) -> dict[str, float]:
        """The quantities that are given."""
        return {name: value for name in RULES if (value := getattr(self, name)) is not None}


RULES: dict[str, dict[Family, tuple[float, float]]] = {
    "width": {"adaptive": (-1.0, 1 / 3), "plain": (0.0, 1 / 3)},
    "batch": {"adaptive": (0.5, 0.25), "plain": (1.0, 0.5)},
    "tokens": {"adaptive": (-0.32, 0.25), "plain": (-0.32, 0.25)},
}
"""By quantity and family, the exponent and its standard error."""


def transfer(here: dict[str, float], there: dict[str, float], family: Family) -> tuple[float, float]:
    """The factor on the learning rate, and the standard error of its logarithm.

    Args:
        here: quantities of the training for which the rate is known.
        there: the same quantities of the other training.
        family: of the optimizer.
    """
    logarithms = {name: math.log(there[name] / value) for name, value in here.items()}
    shift = sum(RULES[name][family][0] * logarithm for name, logarithm in logarithms.items())
    variance = sum((RULES[name][family][1] * logarithm) ** 2 for name, logarithm in logarithms.items())
    return math.exp(shift), math.sqrt(variance)
