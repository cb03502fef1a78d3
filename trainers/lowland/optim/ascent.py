"""The step of steepest ascent that SAM, ASAM and Lookbehind take to find where the loss is high."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lowland.optim.base import require
from lowland.optim.layout import Layout, Segment

__all__ = ["Adaptive", "Ascent", "Move"]

Adaptive = Literal["none", "all", "matrices", "named_weight"]


@dataclass(frozen=True)
class Move:
    """A displacement of points that has not been made yet."""

    points: list[Tensor]
    directions: list[Tensor]
    length: float
    """What the directions are multiplied by."""
    norm: float
    """|T * g|: finite if every gradient is."""

    def make(self) -> None:
        """Moves the points, in place."""
        if self.points:
            torch._foreach_add_(self.points, self.directions, alpha=self.length)


@dataclass(frozen=True)
class Ascent:
    """e = rho T^2 g / |T g|, with one norm over all tensors of all ranks; 0 where it is 0.

    T = |w| + eta in the tensors that `adaptive` says, T = 1 in all others.
    """

    rho: float
    adaptive: Adaptive
    eta: float

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho >= 0 must hold, got {self.rho}")
        require(self.eta >= 0, f"eta >= 0 must hold, got {self.eta}")
        known = get_args(Adaptive)
        require(self.adaptive in known, f"adaptive must be one of {', '.join(known)}, got {self.adaptive!r}")

    def move(
        self, layout: Layout, segments: Sequence[Segment], points: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> Move:
        """The step from the points along gradients of these segments; collective where tensors are sharded."""
        scaled = self._times_t(layout, segments, points, gradients)
        norm = float(layout.squares(zip(segments, scaled, strict=True)).sum().sqrt())
        directions = self._times_t(layout, segments, points, scaled)
        return Move(list(points), directions, self.rho / norm if norm > 0 else 0.0, norm)

    def _times_t(
        self, layout: Layout, segments: Sequence[Segment], points: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> list[Tensor]:
        if self.adaptive == "none":
            return list(tensors)
        scaled = self._scaled(layout)
        return [
            (point.abs() + self.eta) * tensor if scaled[segment.parameter] else tensor
            for segment, point, tensor in zip(segments, points, tensors, strict=True)
        ]

    def _scaled(self, layout: Layout) -> list[bool]:
        """By parameter, whether T = |w| + eta."""
        if self.adaptive == "all":
            return [True] * len(layout.parameters)
        if self.adaptive == "matrices":
            return [len(parameter.shape) >= 2 for parameter in layout.parameters]
        named = ["weight" in parameter.name for parameter in layout.parameters]
        require(
            any(named),
            f'adaptive="named_weight" holds for no tensor: none of {[p.name for p in layout.parameters][:3]} ... has '
            '"weight" in its name; give named_parameters() to the optimizer, or use adaptive="all"',
        )
        return named
