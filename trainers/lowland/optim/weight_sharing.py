"""Weight-sharing regularisation: weights drawn together until many are equal (Shakerinava et al., arXiv 2311.03096).

The penalty of d weights, and its proximal step, which has a closed form in the ascending order w_(1) <= ... <= w_(d):

    R(w) = 1/(d-1) sum_{i>j} |w_i - w_j|
    prox_{sR}(w) = argmin_x |x - w|^2 / 2 + s R(x)
    z_i = w_(i) + s (d + 1 - 2i) / (d - 1)        each moves inwards, the outer ones by s
    x_(.) = the nearest non-decreasing sequence to z, by pooling neighbours that met

It keeps order and mean, prox_{aR} after prox_{bR} is prox_{(a+b)R}, and it meets the l1 penalty's soft threshold:
the step for s R + tau |.|_1 is that of s R, then the threshold at tau.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.base import require
from lowland.optim.layout import Fragment, Layout
from lowland.optim.owners import Owners
from lowland.optim.wrapper import Wrapper

__all__ = ["WeightSharing", "isotonic", "shared_weights"]

_ROUNDS = 32
"""Rounds in which all neighbours out of order are pooled at once; a sequence that needs more is ended by one scan."""


class WeightSharing(Wrapper):
    """After each step of any optimizer, the proximal step of the penalty on each chosen tensor by itself.

        theta <- theta + (1 - rho) (soft_tau(prox_{sR}(theta)) - theta),    s = strength * lr

    What the threshold sets to zero is zero at once.  The step is Euclidean: after an optimizer that scales its
    updates, as Adam does, it is an approximation of that optimizer's own proximal step.

    Memory: none that stays; in a step about 60 bytes per element of the largest chosen tensor, at its owner.  Time:
    a sort of each chosen tensor.  Messages where tensors are sharded: the chosen weights, there and back.  No extra
    passes.

    Args:
        base: the optimizer inside.
        strength: how much the penalty weighs against the loss, >= 0; s is this times the learning rate.
        l1: threshold of the soft threshold (tau), >= 0; not multiplied by the learning rate, as published.
        damping: share of the movement that is left out (rho), in [0, 1); above 0, weights that met come closer
            but are not yet equal.
        tensors: regular expression searched for in the names of the tensors to regularise; None is every tensor of
            two or more dimensions.

    Raises:
        ValueError: an argument is outside its range, or no tensor has a name like that.
    """

    def __init__(
        self,
        base: Optimizer,
        strength: float,
        *,
        l1: float = 0.0,
        damping: float = 0.0,
        tensors: str | None = None,
    ) -> None:
        require(strength >= 0, f"strength >= 0 must hold, got {strength}")
        require(l1 >= 0, f"l1 >= 0 must hold, got {l1}")
        require(0 <= damping < 1, f"damping in [0, 1) must hold, got {damping}")
        self.strength, self.l1, self.damping, self.tensors = strength, l1, damping, tensors
        self._owners: Owners | None = None
        self._chosen: frozenset[int] | None = None
        self._distinct: dict[int, float] = {}
        """By owned tensor, its number of different values after the last step."""
        super().__init__(base)

    def attach(self, layout: Layout) -> None:
        """Tells the base as well."""
        if layout is not self._layout:
            self._owners = self._chosen = None
        super().attach(layout)

    def _after(self, layout: Layout, fragments: Sequence[Fragment]) -> None:
        rates = {id(p): group["lr"] for group in self.param_groups for p in group["params"]}
        chosen = self._indices(layout)
        rate = {
            index: rates[id(fragment.tensor)] for fragment in fragments for index in fragment.members if index in chosen
        }
        if not rate:
            return
        pieces = {
            segment: segment.of(fragment.tensor.data)
            for fragment in fragments
            for segment in fragment.segments
            if segment.parameter in rate
        }
        owners = self._ownership(layout)
        whole = owners.gather(list(rate), pieces)
        moved = owners.scatter(list(rate), {index: self._move(index, w, rate[index]) for index, w in whole.items()})
        for segment, piece in pieces.items():
            piece.copy_(moved[segment].view_as(piece))

    def _move(self, index: int, weight: Tensor, rate: float) -> Tensor:
        moved, distinct = shared_weights(weight, self.strength * rate, self.l1, self.damping)
        self._distinct[index] = distinct
        return moved

    def _indices(self, layout: Layout) -> frozenset[int]:
        """The chosen parameters."""
        if self._chosen is None:
            named = enumerate(layout.parameters)
            if self.tensors is None:
                self._chosen = frozenset(i for i, parameter in named if len(parameter.shape) >= 2)
            else:
                self._chosen = frozenset(i for i, parameter in named if re.search(self.tensors, parameter.name))
            names = ", ".join(parameter.name for parameter in layout.parameters[:3])
            require(
                bool(self._chosen),
                f"weight sharing finds no tensor whose name has {self.tensors!r}; the names are {names}, ..."
                if self.tensors is not None
                else f"weight sharing finds no tensor of two or more dimensions among {names}, ...: name some",
            )
        return self._chosen

    def _ownership(self, layout: Layout) -> Owners:
        if self._owners is None:
            self._owners = Owners(layout)
        return self._owners

    def metrics(self) -> dict[str, float]:
        """The number of different values of the chosen tensors per weight, before damping; collective if sharded."""
        chosen = self._indices(self.layout)
        total = torch.tensor(float(sum(self._distinct.values())), dtype=torch.float64)
        if self.layout.ranks is not None:
            self.layout.ranks.add(total)
        return {"distinct_weights": float(total) / sum(self.layout.parameters[i].numel for i in chosen)}


def shared_weights(weight: Tensor, strength: float, threshold: float = 0.0, damping: float = 0.0) -> tuple[Tensor, int]:
    """The proximal step of s R + tau |.|_1 on a tensor, damped.

    Args:
        weight: of any shape, and not changed.
        strength: s, >= 0; at 0 and without a threshold the tensor comes back as it is.
        threshold: tau, >= 0.
        damping: rho, in [0, 1).

    Returns:
        The tensor after the step, and how many different values the undamped step has before the threshold.
    """
    moved, distinct = _proximal(weight, strength)
    if threshold > 0:
        moved = torch.nn.functional.softshrink(moved, threshold)
    zero = (moved == 0) if threshold > 0 else None
    if damping > 0:
        moved = weight + (1 - damping) * (moved - weight)
    return (moved if zero is None else moved.masked_fill(zero, 0.0)).to(weight.dtype), distinct


def _proximal(weight: Tensor, strength: float) -> tuple[Tensor, int]:
    d = weight.numel()
    if strength == 0 or d < 2:
        return weight, d
    ascending, order = weight.reshape(-1).sort()
    shifts = torch.arange(d - 1, -d, -2, dtype=torch.float64, device=weight.device).mul_(strength / (d - 1))
    values, sizes = isotonic(shifts.add_(ascending))
    moved = torch.empty_like(shifts).scatter_(0, order, values.repeat_interleave(sizes))
    return moved.view(weight.shape), len(sizes)


def isotonic(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest non-decreasing sequence in the sense of least squares, as runs of equal values.

    Its sums are the greatest convex function below the sums of `values`, so pooling neighbours means dropping points
    that do not lie below the line between their neighbours; in which order does not matter.

    Args:
        values: float64 [n], n >= 1.

    Returns:
        The runs' values, ascending, and their lengths.
    """
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    ends = torch.arange(len(sums), device=values.device)
    for _ in range(_ROUNDS):
        means = sums[ends].diff() / ends.diff()
        rises = means[:-1] < means[1:]
        if bool(rises.all()):
            break
        ends = torch.cat([ends[:1], ends[1:-1][rises], ends[-1:]])
    else:
        ends = ends[_below(ends.tolist(), sums[ends].tolist())]
    sizes = ends.diff()
    # A single value is not taken from a difference of sums, so that it is itself.
    return torch.where(sizes == 1, values[ends[:-1]], sums[ends].diff() / sizes), sizes


def _below(xs: list[int], ys: list[float]) -> list[int]:
    """Indices of the points of the lower convex hull, in one scan from left to right."""
    kept: list[int] = []
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        while len(kept) > 1:
            last, before = kept[-1], kept[-2]
            if (ys[last] - ys[before]) * (x - xs[last]) < (y - ys[last]) * (xs[last] - xs[before]):
                break
            kept.pop()
        kept.append(i)
    return kept
