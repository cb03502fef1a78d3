"""What an optimizer looks at, told by what changes its update: other tensors, or where a tensor is cut.

ZeRO flattens tensors, joins them and cuts what it has at places of its own.  An optimizer that looks at single
elements does not notice; others do, and then compute something else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lowland.optim.conformance.problems import Tensors, descend
from lowland.optim.conformance.subject import Subject

__all__ = ["Sight", "sight"]

ROUNDING = 1e-5
STEPS = 10


@dataclass(frozen=True)
class Sight:
    """What an optimizer's update of an element depends on."""

    sees: Literal["elements", "tensors", "model"]
    """That element's gradients alone, its whole tensor, or all tensors."""
    reason: str
    """How that showed."""


def sight(subject: Subject) -> Sight:
    """Steps two matrices whole, each alone, and flattened and cut, and compares."""
    whole = _trained(subject, lambda a, b: [a, b])
    alone = torch.cat([_trained(subject, lambda a, b: [a]), _trained(subject, lambda a, b: [b])])
    if _apart(alone, whole):
        return Sight("model", "its update of a tensor depends on the other tensors: it sums or ranks over all of them")
    if subject.matrices_only:
        return Sight("tensors", "it takes matrices alone, and fragments are flat")
    try:
        flat = _trained(subject, lambda a, b: [a.reshape(-1), b.reshape(-1)])
        cut = _trained(subject, lambda a, b: [a.reshape(-1)[:5], a.reshape(-1)[5:], b.reshape(-1)])
    except Exception as error:
        return Sight("tensors", f"it refuses flat tensors, which fragments are: {type(error).__name__}: {error}")
    if _apart(flat, whole):
        return Sight("tensors", "its update depends on a tensor's shape, and fragments are flat")
    if _apart(cut, flat):
        return Sight(
            "tensors",
            "its update depends on where a fragment is cut: it takes norms, sums or ranks over each tensor it is given",
        )
    return Sight("elements", "its update of an element depends on that element's gradients alone")


def _trained(subject: Subject, cut: Callable[[Tensor, Tensor], list[Tensor]]) -> Tensor:
    """How some steps move the elements of two matrices that `cut` takes, one after the other."""
    start, target = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    # Unlike curvatures: with equal ones all gradients and momenta are parallel, and norms and cosines show little.
    curvature = torch.logspace(-1, 1, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(4))].view(2, 3, 4)
    starts, pulls = cut(*start), list(zip(cut(*curvature), cut(*target), strict=True))
    pieces = {str(index): nn.Parameter(piece.clone()) for index, piece in enumerate(starts)}

    def loss(values: Tensors) -> Tensor:
        return torch.stack([(c * (values[str(i)] - t) ** 2).sum() for i, (c, t) in enumerate(pulls)]).sum()

    descend(subject.build(list(pieces.values())), pieces, loss, STEPS)
    return torch.cat([(pieces[str(i)].detach() - piece).reshape(-1) for i, piece in enumerate(starts)])


def _apart(first: Tensor, second: Tensor) -> bool:
    return float((first - second).norm()) > ROUNDING * float(second.norm())
