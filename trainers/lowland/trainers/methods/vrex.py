"""V-REx: risks of several environments drawn together.

Krueger et al., *Out-of-distribution generalization via risk extrapolation* (2021), eq. 8: the variance of the
environments' risks is added to the objective.
"""

from torch import Tensor

from lowland.trainers.methods.base import GlobalBatch, Method, group_means


def risk_variance(losses: Tensor, groups: Tensor) -> Tensor:
    """The variance of the mean losses of the groups that occur, each counted once, divided by their number.

    Args:
        losses: [N]
        groups: int [N]
    """
    risks = group_means(losses, groups)
    return (risks - risks.mean()).square().mean()


class VREx(Method):
    """Adds beta times the variance of the environments' risks to the mean loss.

    The mean is over examples, so that strength 0 is plain training; where each environment has as many examples, it
    is the mean over environments of the paper.  An environment without an example in the batch is left out of the
    variance.

    Args:
        strength: beta, at least 0.
        start: step from which it holds; before it beta is 0.
    """

    name = "vrex"
    of_batch = True

    def __init__(self, strength: float, start: int = 0) -> None:
        self._strength, self._start, self._now = strength, start, strength
        self._variance = 0.0

    def begin_step(self, step: int) -> None:
        """Decides whether the penalty holds."""
        self._now = self._strength if step >= self._start else 0.0

    def penalty(self, batch: GlobalBatch) -> Tensor:
        """The variance times beta."""
        assert batch.groups is not None, "data without groups are refused before"
        variance = risk_variance(batch.losses, batch.groups)
        self._variance = float(variance.detach())
        return self._now * variance

    def metrics(self) -> dict[str, float]:
        """Variance of the risks in the last batch."""
        return {"risk_variance": self._variance}
