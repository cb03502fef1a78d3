"""Rationale invariance: how features make a decision should be the same for all examples of a class.

Chen et al., *Domain generalization via rationale invariance* (2023).  The rationale of an example with features z under
classifier rows w_c is r[c] = w_c * z (elementwise), [K, d]; a bank R_y holds its running mean for each class.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lowland.trainers.engines import Engine
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import GlobalBatch, Method, Outputs, Problem
from lowland.trainers.methods.classifier import classifier_of
from lowland.trainers.world import World

_LARGEST_BANK = 2**28


class RationaleInvariance(Method):
    """Adds alpha times the sum over the batch's classes of the mean squared distance of rationales from R_y.

    The bank moves after a step, R_y <- (1 - m) R_y + m (mean of the class in the global batch), so that a step's
    gradients need no statistics first; a class counts from the step after its first appearance.  Memory: 4 K^2 d bytes.

    Args:
        strength: alpha, at least 0.
        momentum: m, in (0, 1].
    """

    name = "rationale_invariance"
    of_features = True
    of_batch = True

    def __init__(self, strength: float, momentum: float) -> None:
        self._strength, self._momentum = strength, momentum
        self._bank, self._seen = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        self._sums, self._counts = torch.zeros(0), torch.zeros(0)
        self._weight: Tensor = torch.zeros(0)
        self._penalty = 0.0

    def build(self, network: nn.Module, problem: Problem) -> None:
        """An empty bank."""
        _, head = classifier_of(network, self.name)
        self._weight = head.weight
        size = problem.classes**2 * head.in_features
        if size > _LARGEST_BANK:
            raise RecipeError(
                f"methods: rationale_invariance: classes^2 x features = {size} numbers are {4 * size / 2**30:.1f} GiB "
                "on each worker; at most 1 GiB is allowed: remove it, or take fewer classes"
            )
        self._bank = torch.zeros(problem.classes, problem.classes, head.in_features)
        self._seen = torch.zeros(problem.classes, dtype=torch.bool)

    def begin_step(self, step: int) -> None:
        """Forgets the sums of the last step."""
        self._counts = torch.zeros(len(self._seen), dtype=torch.float64)
        self._sums = torch.zeros(self._bank.shape[::2], dtype=torch.float64)

    def scalars(self, outputs: Outputs) -> dict[str, Tensor]:
        """The squared distances [B]; 0 where the class has none yet."""
        assert outputs.features is not None, "the task gives features where this method is asked for"
        features, labels = outputs.features.float(), outputs.labels
        self._bank, self._seen = self._bank.to(features.device), self._seen.to(features.device)
        rationales = features[:, None, :] * self._weight.float()
        distances = (rationales - self._bank[labels]).square().sum(dim=(1, 2))
        if torch.is_grad_enabled() and self.first_pass:
            self._count(features.detach(), labels)
        return {"rationale": torch.where(self._seen[labels], distances, torch.zeros_like(distances))}

    def _count(self, features: Tensor, labels: Tensor) -> None:
        self._sums = self._sums.to(features.device).index_add_(0, labels, features.double())
        self._counts = self._counts.to(features.device) + torch.bincount(labels, minlength=len(self._seen))

    def penalty(self, batch: GlobalBatch) -> Tensor:
        """Alpha times the sum over classes of mean distances."""
        distances = batch.scalars["rationale"]
        counts = torch.bincount(batch.labels)[batch.labels]
        total = (distances / counts).sum()
        self._penalty = float(total.detach())
        return self._strength * total

    @torch.no_grad()
    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Moves the bank by the means of the global batch, with the weights that the step left."""
        shape = self._sums.shape
        total = torch.tensor(world.sum([*self._counts.tolist(), *self._sums.flatten().tolist()]), dtype=torch.float64)
        counts, sums = total[: len(self._counts)], total[len(self._counts) :].view(shape)
        means = (sums / counts.clamp(min=1)[:, None]).to(self._bank)
        rationales = means[:, None, :] * self._weight.float()
        here = (counts > 0).to(self._seen.device)
        rate = torch.where(self._seen, self._momentum, 1.0) * here
        self._bank.lerp_(rationales, rate[:, None, None])
        self._seen |= here

    def state(self) -> dict[str, Tensor]:
        """The bank."""
        return {"bank": self._bank, "seen": self._seen.to(torch.uint8)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores it."""
        self._bank, self._seen = state["bank"], state["seen"].bool()

    def metrics(self) -> dict[str, float]:
        """The penalty of the last batch, before alpha."""
        return {"rationale_distance": self._penalty}
