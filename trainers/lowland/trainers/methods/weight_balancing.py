"""Long tails: class-balanced losses, and classifier weights whose norms are bounded.

Alshammari et al., *Long-tailed recognition via weight balancing* (2022).  Two stages, two trainings: the first is plain
with a weight decay that was tuned (often ten times the usual); the second starts from its export with
`train: classifier`, a class-balanced loss and MaxNorm, for a few epochs.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lowland.trainers.engines import Engine
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import GlobalBatch, Method, Outputs, Problem
from lowland.trainers.methods.classifier import classifier_of
from lowland.trainers.world import World


def class_balanced_weights(counts: Sequence[int], beta: float) -> Tensor:
    """Weights of classes by effective numbers of examples, (1 - beta) / (1 - beta^n), scaled to mean 1.

    Cui et al., *Class-balanced loss based on effective number of samples* (2019).

    Args:
        counts: examples of each class, each at least 1.
        beta: in [0, 1]: 0 weighs all alike, 1 by the inverse of their number.
    """
    numbers = torch.tensor(counts, dtype=torch.float64)
    weights = 1 / numbers if beta == 1 else (1 - beta) / (1 - beta**numbers)
    scaled: Tensor = weights / weights.mean()
    return scaled


def norm_bound(weight: Tensor, share: float) -> float:
    """The bound between the smallest (share 0) and the largest (share 1) norm of the rows of a classifier [K, d]."""
    norms = weight.detach().double().norm(dim=1)
    return float(norms.min() + share * (norms.max() - norms.min()))


def tau_normalized(weight: Tensor, tau: float) -> Tensor:
    """Rows w / |w|^tau (Kang et al., 2020): tau 0 leaves them, tau 1 makes all norms 1."""
    scaled: Tensor = weight / weight.norm(dim=1, keepdim=True) ** tau
    return scaled


@torch.no_grad()
def bound_rows(engine: Engine, world: World, name: str, bound: float) -> int:
    """Scales rows of a classifier whose norm is above a bound down to it, in the fp32 masters; collective.

    Rows may lie in pieces over ranks: their squares are summed by one all-reduce of K numbers.

    Returns:
        How many rows were scaled.
    """
    weight = dict(engine.module.named_parameters())[name]
    classes = getattr(weight, "ds_shape", weight.shape)[0]  # stage 3 leaves an empty tensor in its place
    pieces = [piece for piece in engine.pieces() if piece.name == name]
    squares = torch.zeros(classes, dtype=torch.float64)
    rows = []
    for piece in pieces:
        flat = piece.tensors["weight"].view(-1)
        row = torch.arange(piece.segment.offset, piece.segment.offset + flat.numel(), device=flat.device)
        row = row // (piece.numel // classes)
        rows.append(row)
        squares += torch.zeros_like(squares, device=flat.device).index_add_(0, row, flat.double().square()).cpu()
    if not engine.replicated:
        squares = torch.tensor(world.sum(squares.tolist()), dtype=torch.float64)
    norms = squares.sqrt()
    factors = torch.where(norms > bound, bound / norms, 1.0)
    above = int((norms > bound).sum())
    if above:
        for piece, row in zip(pieces, rows, strict=True):
            flat = piece.tensors["weight"].view(-1)
            flat.mul_(factors.to(flat.device, flat.dtype)[row])
        engine.masters_changed()
    return above


class WeightBalancing(Method):
    """Class-balanced loss and MaxNorm, of the whole network or of its classifier alone.

    Args:
        beta: of `class_balanced_weights`; 0 leaves the loss as it is.
        max_norm: bound of the norms of the classifier's rows after each step; None leaves them.
        relative: whether the bound is a share between the smallest and the largest norm at the start.
        train: `classifier` freezes all else.
    """

    name = "weight_balancing"

    def __init__(
        self, beta: float, max_norm: float | None, *, relative: bool, train: Literal["all", "classifier"]
    ) -> None:
        self._beta, self._max_norm, self._relative, self._train = beta, max_norm, relative, train
        self._weights = torch.ones(1)
        self._parameter: Tensor | None = None
        self._name = ""
        self._bounded = 0

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Measures the classifier and freezes the rest, if it is to be."""
        empty = [index for index, count in enumerate(problem.class_counts) if count == 0]
        if empty and self._beta > 0:
            raise RecipeError(
                f"methods: weight_balancing with beta: {self._beta} needs an example of each class; class {empty[0]} "
                "has none: set beta: 0, or leave the class out"
            )
        self._weights = class_balanced_weights(problem.class_counts, self._beta) if self._beta else torch.ones(1)
        _, head = classifier_of(network, self.name)
        self._parameter = head.weight
        if self._max_norm is not None and self._relative:
            self._max_norm = norm_bound(head.weight, self._max_norm)
        if self._train == "classifier":
            own = {id(parameter) for parameter in head.parameters()}
            for parameter in network.parameters():
                parameter.requires_grad_(id(parameter) in own)

    def attach(self, engine: Engine, world: World) -> None:
        """Notes the classifier's name."""
        (self._name,) = [name for name, p in engine.module.named_parameters() if p is self._parameter]

    def factor(self, outputs: Outputs) -> Tensor | None:
        """Of mixed examples in the proportion of their targets."""
        if not self._beta:
            return None
        return (outputs.targets * self._weights.to(outputs.targets)).sum(dim=1)

    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """MaxNorm."""
        if self._max_norm is None:
            return
        self._bounded = bound_rows(engine, world, self._name, self._max_norm)

    def metrics(self) -> dict[str, float]:
        """Rows that the last step had left above the bound."""
        return {"bounded_rows": float(self._bounded)}
