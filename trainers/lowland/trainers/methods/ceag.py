"""CEAG: sparsity that costs no subgroup more accuracy than the others.

Hashemizadeh et al., *Balancing act: constraining disparate impact in sparse models* (2024).  For each group g the
excess gap in accuracy, between the dense and the sparse model, is bounded:

    psi_g = (A_g dense - A_g sparse) - (A dense - A sparse) <= tolerance,

where A without a group is the mean over groups.  Accuracies are those of the latest training examples; what acts on the
weights is the loss of the group less that of the batch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowland.trainers.engines import Engine
from lowland.trainers.methods.base import GlobalBatch, Method
from lowland.trainers.methods.multipliers import Multipliers
from lowland.trainers.world import World


def excess_gaps(dense: Tensor, sparse: Tensor) -> Tensor:
    """psi of each group, from accuracies [groups] of the dense and of the sparse model."""
    return (dense - sparse) - (dense.mean() - sparse.mean())


class AccuracyWindow:
    """The accuracy of each group over its latest examples.

    Whole batches enter, and the oldest leave as long as `size` examples remain, so that it does not matter in which
    order ranks give the examples of a batch.

    Args:
        groups: their number.
        size: examples of a group that are needed, at least 1.
    """

    def __init__(self, groups: int, size: int) -> None:
        self._size = size
        self._correct = torch.zeros(groups, size, dtype=torch.float64)
        self._counts = torch.zeros(groups, size, dtype=torch.float64)

    def add(self, correct: Tensor, groups: Tensor) -> None:
        """Takes in a batch: 1 or 0 of each example, float64 [N], and its group, int64 [N]."""
        count = len(self._counts)
        batch = torch.bincount(groups.cpu(), minlength=count).double()
        right = torch.zeros(count, dtype=torch.float64).index_add_(0, groups.cpu(), correct.double().cpu())
        here = batch > 0
        # Newest first; a slot has at least one example, so that `size` slots are always enough.
        for slots, new in ((self._correct, right), (self._counts, batch)):
            slots[here] = torch.cat([new[here, None], slots[here, :-1]], dim=1)
        needed = torch.cumsum(self._counts, dim=1) - self._counts < self._size
        self._correct *= needed
        self._counts *= needed

    @property
    def full(self) -> Tensor:
        """bool [groups]: whether as many examples as needed are there."""
        return self._counts.sum(dim=1) >= self._size

    @property
    def accuracy(self) -> Tensor:
        """float64 [groups]; 0 for a group without examples."""
        return self._correct.sum(dim=1) / self._counts.sum(dim=1).clamp(min=1)

    def state(self) -> dict[str, Tensor]:
        """Everything that `load` needs."""
        return {"window/correct": self._correct, "window/counts": self._counts}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state`."""
        self._correct, self._counts = state["window/correct"], state["window/counts"]


class CEAG(Method):
    """The constraints of all groups, beside whatever makes the model sparse.

    Args:
        tolerance: of the excess gaps, at least 0.
        multipliers: one of each group, of inequalities.
        window: of accuracies.
        dense: accuracy of each group of the dense model; None takes the window's at `start`.
        start: step from which the constraints act: where sparsity begins.
    """

    name = "ceag"
    of_batch = True

    def __init__(
        self,
        tolerance: float,
        multipliers: Multipliers,
        window: AccuracyWindow,
        *,
        dense: Sequence[float] | None,
        start: int,
    ) -> None:
        self._tolerance, self._multipliers, self._window, self._start = tolerance, multipliers, window, start
        groups = len(multipliers.values)
        self._given = dense is not None
        self._dense = torch.full((groups,), torch.nan, dtype=torch.float64)
        if dense is not None:
            self._dense = torch.tensor(dense, dtype=torch.float64)
        self._gaps = torch.zeros(groups, dtype=torch.float64)
        self._step = 0

    def begin_step(self, step: int) -> None:
        """Takes the dense model's accuracies when sparsity begins."""
        self._step = step
        unknown = self._dense.isnan() & self._window.full
        if not self._given and step >= self._start and bool(unknown.any()):
            self._dense = torch.where(unknown, self._window.accuracy, self._dense)

    def penalty(self, batch: GlobalBatch) -> Tensor | None:
        """mu' (loss of the group - loss of the batch), over the groups that occur."""
        assert batch.groups is not None, "data without groups are refused before"
        if self._step < self._start:
            return None
        terms = []
        for group, multiplier in enumerate(self._multipliers.values.tolist()):
            own = batch.losses[batch.groups == group]
            if len(own):
                terms.append(multiplier * (own.mean() - batch.losses.mean()))
        return torch.stack(terms).sum()

    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Takes in the accuracies, and moves the multipliers of groups that the batch has and whose window is full."""
        assert batch is not None
        assert batch.groups is not None
        self._window.add(batch.correct, batch.groups)
        known = self._window.full & ~self._dense.isnan()
        if self._step < self._start or not bool(known.any()):
            return
        gaps = excess_gaps(self._dense[known], self._window.accuracy[known])
        self._gaps = torch.zeros_like(self._gaps).masked_scatter(known, gaps)
        present = torch.bincount(batch.groups.cpu(), minlength=len(known)) > 0
        self._multipliers.step(self._gaps - self._tolerance, known & present)

    def state(self) -> dict[str, Tensor]:
        """Multipliers, window and the dense model's accuracies."""
        return {**self._multipliers.state(), **self._window.state(), "dense": self._dense}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        self._multipliers.load(dict(state))
        self._window.load(state)
        self._dense = state["dense"]

    def metrics(self) -> dict[str, float]:
        """Accuracy, excess gap and multiplier of each group, and the largest gap."""
        columns = (self._window.accuracy.tolist(), self._gaps.tolist(), self._multipliers.values.tolist())
        found = {"largest_gap": float(self._gaps.max())}
        for group, (accuracy, gap, multiplier) in enumerate(zip(*columns, strict=True)):
            found |= {
                f"group_{group}/accuracy": accuracy,
                f"group_{group}/gap": gap,
                f"group_{group}/multiplier": multiplier,
            }
        return found
