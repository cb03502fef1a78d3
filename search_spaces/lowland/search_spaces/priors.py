"""Beliefs about where good values lie."""

from statistics import NormalDist
from typing import Annotated

from pydantic import Field

from lowland.search_spaces.part import Part, Value
from lowland.search_spaces.transfer import Setting

NEAR = 0.1
"""Part of a range that counts as near, to either side of a centre."""
_STANDARD = NormalDist()


class Prior(Part):
    """Where a good value is believed to lie.

    Samplers let its weight fall as trials come in, so that a wrong one washes out.
    """

    centre: Value
    """The value believed best, on the scale that is searched; of a branch the name of an alternative."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability that the best value lies within a tenth of the range to either side of the centre; of a choice or a
    branch, that the centre is the best."""
    known_at: Setting | None = None
    """The training for which a learning rate is known to be the centre; it is moved to the recipe's by rules."""

    @property
    def deviation(self) -> float:
        """Standard deviation of the normal distribution it describes, as a part of the range."""
        return NEAR / _STANDARD.inv_cdf((1 + self.confidence) / 2)


def confidence(deviation: float) -> float:
    """The confidence of a normal distribution with this standard deviation, as a part of the range."""
    return min(max(2 * _STANDARD.cdf(NEAR / deviation) - 1, 1e-6), 1 - 1e-6)
