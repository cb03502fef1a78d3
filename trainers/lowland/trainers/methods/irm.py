"""IRMv1: invariant risk minimisation by a penalty on the scale of the classifier."""

import torch
from torch import Tensor

from lowland.trainers.methods.base import GlobalBatch, Method, Outputs, group_means


class IRM(Method):
    """IRMv1: the classifier that is best for the features should be best in each environment.

    Arjovsky et al., *Invariant risk minimization* (2019), eq. 4.  The penalty of environment e is the squared
    derivative, at s = 1, of its risk with logits multiplied by s.  That derivative is the mean over its examples of

        d_i = sum_c z_c (p_c - y_c),    p = softmax(z),

    so no second backward pass is needed.  The square of a mean over n examples is biased by their variance / n;
    `unbiased` takes the mean of d_i d_j over pairs i != j in its place, which may be negative.

    Args:
        strength: lambda, at least 0.
        start: step from which it holds.
        unbiased: the mean over pairs; an environment with one example in the batch counts 0 then.
    """

    name = "irm"
    of_batch = True

    def __init__(self, strength: float, start: int = 0, unbiased: bool = True) -> None:
        self._strength, self._start, self._now = strength, start, strength
        self._unbiased = unbiased
        self._penalty = 0.0

    def begin_step(self, step: int) -> None:
        """Decides whether the penalty holds."""
        self._now = self._strength if step >= self._start else 0.0

    def scalars(self, outputs: Outputs) -> dict[str, Tensor]:
        """The derivatives d_i."""
        logits = outputs.logits.float()
        return {"irm": (logits * (logits.softmax(dim=1) - outputs.targets)).sum(dim=1)}

    def penalty(self, batch: GlobalBatch) -> Tensor:
        """Lambda times the mean over environments."""
        assert batch.groups is not None, "data without groups are refused before"
        penalty = scale_penalty(batch.scalars["irm"], batch.groups, unbiased=self._unbiased)
        self._penalty = float(penalty.detach())
        return self._now * penalty

    def metrics(self) -> dict[str, float]:
        """The penalty of the last batch, before lambda."""
        return {"scale_penalty": self._penalty}


def scale_penalty(derivatives: Tensor, groups: Tensor, *, unbiased: bool) -> Tensor:
    """The mean over groups of the squared mean derivative, or of its unbiased estimate over pairs."""
    means = group_means(derivatives, groups)
    if not unbiased:
        return means.square().mean()
    counts = torch.unique(groups, return_counts=True)[1].to(derivatives)
    squares = group_means(derivatives.square(), groups)
    pairs = (counts * means.square() - squares) / (counts - 1).clamp(min=1)
    return torch.where(counts > 1, pairs, torch.zeros_like(pairs)).mean()
