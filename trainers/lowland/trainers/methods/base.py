"""What a training method may do: the few places of a training at which it is asked.

A step of a training with methods goes so.  The network gives logits for a micro-batch; together with targets and
features they are `Outputs`.  `losses` may put other losses in the place of the task's, `factor` and `extra` change
them example by example.  What depends on the whole batch (a variance of risks, a rank of losses, a constraint) is
a function of a few numbers per example, `scalars`; these are gathered from all ranks and micro-batches as a
`GlobalBatch`, and `weights` and `penalty` are functions of it.  After the optimizer's step `after_step` may change
weights and the method's own state.  A method may also say how often each training image comes, by `sampling`.

A method of strength 0 changes no bit of a training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lowland.optim import Weights
from lowland.trainers.data.images.sampling import Sampling
from lowland.trainers.engines import Engine, StatePiece
from lowland.trainers.world import World


@dataclass(frozen=True)
class Outputs:
    """What the network says of one micro-batch of B examples in K classes; losses and logits carry gradients."""

    logits: Tensor
    """[B, K]"""
    targets: Tensor
    """[B, K] probabilities: one-hot, smoothed or mixed."""
    labels: Tensor
    """int64 [B]; of a mixed example the label of its larger part."""
    losses: Tensor
    """float32 [B]: cross-entropy in nats, or what a method put in its place."""
    features: Tensor | None = None
    """[B, d]: what the classifier was given."""
    groups: Tensor | None = None
    """int64 [B]: the environment or subgroup of each example; None if the data have none."""
    rows: Tensor | None = None
    """int64 [B]: which examples of the training set these are."""
    other_logits: Tensor | None = None
    """[B, K]: of a second network, which is not trained on the labels of these examples; None if there is none."""
    other_targets: Tensor | None = None
    """[B, K] probabilities: what that network is to say of them."""


@dataclass(frozen=True)
class GlobalBatch:
    """Numbers of all N examples of a step, the same on every rank and in the same order."""

    losses: Tensor
    """float64 [N], a leaf: gradients with respect to it are the factors of the examples' losses."""
    labels: Tensor
    """int64 [N]"""
    correct: Tensor
    """float64 [N]: 1 where the largest logit is the label's."""
    groups: Tensor | None
    """int64 [N]"""
    scalars: Mapping[str, Tensor]
    """float64 [N], leaves: what the methods asked for by `Method.scalars`."""


@dataclass(frozen=True)
class Problem:
    """What a method is told of the training before it begins."""

    classes: int
    class_counts: tuple[int, ...]
    """Training examples of each class."""
    groups: int
    """Number of groups; 0 if the data have none."""
    shape: tuple[int, ...]
    """Of what the network is given for one example."""
    seed: int


class Method:
    """A training method; each of these does nothing by default.

    Methods are called on every rank alike, and what is collective says so.  `name` is the recipe's.
    """

    name: str
    of_features = False
    """Whether `Outputs.features` are to be there."""
    of_batch = False
    """Whether `weights` or `penalty` are to be asked, which needs numbers of the whole global batch."""
    first_pass = True
    """Whether the step's first gradients are being taken; optimizers such as SAM take more, at other weights."""
    sampling: Sampling | None = None
    """How often training images come, once that is known; None is once an epoch.  Set it in `begin_step`: it holds from
    the next step on, which is taken while this one is computed."""

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Changes the network before the engine takes it, or refuses it by a RecipeError."""

    def attach(self, engine: Engine, world: World) -> None:
        """Once the engine is there, before checkpoints are read; it may be asked for names and sizes."""

    def begin_step(self, step: int) -> None:
        """Before the gradients of a step, counted from 0."""

    def losses(self, outputs: Outputs) -> Tensor | None:
        """Losses [B] instead of those of the task."""

    def factor(self, outputs: Outputs) -> Tensor | None:
        """Factors [B] of the losses that depend on the example alone."""

    def extra(self, outputs: Outputs) -> Tensor | None:
        """Terms [B] that are added to the losses, and so averaged over the global batch."""

    def scalars(self, outputs: Outputs) -> dict[str, Tensor]:
        """Numbers [B] of each example, with gradients, that `penalty` is a function of."""
        return {}

    def weights(self, batch: GlobalBatch) -> Tensor | None:
        """Factors [N] of the losses, without gradients; their mean should be 1."""

    def penalty(self, batch: GlobalBatch) -> Tensor | None:
        """A differentiable number that is added to the mean loss."""

    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """After an optimizer step that was applied; collective.  `batch` is that of the step's first gradients."""

    def after_all(self, engine: Engine) -> None:
        """After every method's `after_step`: puts back what this one keeps at 0, whoever changed it; collective."""

    def schedule(self, step: int, total: int) -> tuple[int, int]:
        """The step, and the length, at which the learning-rate schedule is read."""
        return step, total

    def piece_state(self, piece: StatePiece) -> dict[str, Tensor]:
        """State of the same size as a piece of a parameter, to be saved and loaded with it."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a resume needs besides, the same on every rank; `load_state` gets it back."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state`."""

    def exported(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the network to export, by name: these, or a smaller network's."""
        return weights

    def metrics(self) -> dict[str, float]:
        """What there is to say of the last step, the same on every rank."""
        return {}


class SeveralGradients:
    """Of a method whose step takes several gradients of the batch and makes one of them."""

    parts: int
    """How many."""
    part: int
    """The one that is being taken, set by the loop."""

    def combine(self, taken: Sequence[Sequence[Tensor]], weights: Weights, world: World, *, replicated: bool) -> None:
        """Puts what is made of them in the place of the last one; collective.

        Args:
            taken: of all but the last, this rank's gradients in the order of `weights.gradients()`.
            weights: has the last.
            world: the ranks.
            replicated: whether every rank has whole gradients.
        """
        raise NotImplementedError


class Gather(Protocol):
    """How the rows of all ranks come together."""

    def __call__(self, rows: Tensor) -> tuple[Tensor, int]:
        """Every rank's rows [N, k] in the order of the ranks, and the index of this rank's first one; collective."""


def group_means(values: Tensor, groups: Tensor) -> Tensor:
    """Means of `values` [N] over the groups that occur, in ascending order of the groups; differentiable."""
    _, index = torch.unique(groups, return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    sums = torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, index, values)
    return sums / torch.bincount(index, minlength=count)
