"""Sharpness-Aware Minimization and its relatives: SAM, ASAM, GSAM and F-SAM, around any optimizer.

With the gradient g at the weights theta:

    e      = rho T^2 d / |T d|                    one norm over all trainable tensors of all ranks
    g'     = gradient of the same batch at theta + e
    theta <- base optimizer's step at theta with the gradient u

    SAM    T = 1, d = g, u = g'                                        (Foret et al., arXiv 2010.01412)
    ASAM   T = |theta| + eta                                           (Kwon et al., arXiv 2102.11600)
    GSAM   u = g' - alpha (g - <g, g'> / |g'|^2 g')                    (Zhuang et al., arXiv 2203.08065)
    F-SAM  d = g - sigma m, then m <- lambda m + (1 - lambda) g        (Li et al., arXiv 2403.12350)
           with m = g after the first step, which is one of SAM

Inner products are over all tensors as well.  Weight decay of the base is not in g.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.ascent import Adaptive, Ascent, Move
from lowland.optim.base import require
from lowland.optim.layout import Gradients, Segment
from lowland.optim.wrapper import Wrapper

__all__ = ["SAM"]

AVERAGE = "fsam_gradient"
"""F-SAM's m."""


class SAM(Wrapper):
    """Steps with the gradient taken where the loss around the weights is highest, to first order.

    The weights come back to the bit.  The perturbed weights are made from fp32 masters and rounded then, never added
    to rounded weights; still a bf16 model of 1e8 parameters shows little of e but rounding: `shift_ratio` and
    `shift_cosine` among the metrics say how much.  With engine torch weights are fp32 and nothing is lost.

    Clipping acts on u.  A gradient that is not finite in either pass skips the step and changes nothing.

    Memory: nothing between steps; F-SAM 4 bytes per parameter.  Within a step 4 bytes per parameter for a copy of
    the masters (where the model computes with them; else for a moment), and for GSAM and F-SAM 4 for g.
    One extra pass over the batch in each perturbed step.

    Args:
        base: the optimizer that steps.
        rho: length of the perturbation, >= 0; about ten times as much for ASAM.
        adaptive: tensors with T = |theta| + eta (ASAM): `none`; `all`; `matrices`, those of two or more dimensions;
            `named_weight`, those with "weight" in their name, as the authors' code has it.
        eta: added to |theta| there, >= 0.
        every: only each so many steps are perturbed (steps every, 2 every, ...), >= 1; the others are the base's.
        per_rank: each rank perturbs by the gradient of its own part of the batch (m-sharpness), and only g' is
            averaged.  Only for whole parameters, and not with GSAM or F-SAM.  In a loop of one's own the first
            backward pass belongs under DDP's `no_sync`.
        gsam_alpha: alpha of GSAM, >= 0; 0 is SAM.
        fsam_sigma: sigma of F-SAM, >= 0, usually 1; 0 is SAM.
        fsam_decay: lambda of F-SAM, in [0, 1).

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        *,
        adaptive: Adaptive = "none",
        eta: float = 0.01,
        every: int = 1,
        per_rank: bool = False,
        gsam_alpha: float = 0.0,
        fsam_sigma: float = 0.0,
        fsam_decay: float = 0.9,
    ) -> None:
        require(every >= 1, f"every >= 1 must hold, got {every}")
        require(gsam_alpha >= 0, f"gsam_alpha >= 0 must hold, got {gsam_alpha}")
        require(fsam_sigma >= 0, f"fsam_sigma >= 0 must hold, got {fsam_sigma}")
        require(0 <= fsam_decay < 1, f"fsam_decay in [0, 1) must hold, got {fsam_decay}")
        require(
            not per_rank or not (gsam_alpha or fsam_sigma),
            "per_rank gives each rank its own gradient, which gsam_alpha and fsam_sigma would need averaged: "
            "set per_rank=False, or both to 0",
        )
        self._ascent = Ascent(rho, adaptive, eta)
        self.every, self.per_rank = every, per_rank
        self.gsam_alpha, self.fsam_sigma, self.fsam_decay = gsam_alpha, fsam_sigma, fsam_decay
        self._steps = 0
        self._ascended = False
        self._move: Move | None = None
        self._first: dict[Segment, Tensor] = {}
        """g, where GSAM or F-SAM needs it until the step."""
        super().__init__(base)

    def steps_now(self) -> bool:
        """Whether the gradients at hand are g', or this step is not perturbed."""
        return self._ascended or (self._steps + 1) % self.every != 0

    def ascend(self, gradients: Gradients) -> float:
        """Finds e from g."""
        segments, points, first = [], [], []
        for segment, tensor, gradient in gradients:
            segments.append(segment)
            points.append(segment.of(tensor.data))
            first.append(gradient)
        if self.gsam_alpha or self.fsam_sigma:
            # A copy: the next backward pass writes where these lie.
            kept = [gradient.to(points[i].dtype, copy=True) for i, gradient in enumerate(first)]
            self._first = dict(zip(segments, kept, strict=True))
        self._move = self._ascent.move(self.layout, segments, points, self._friendly(segments, first))
        self._ascended = True
        return self._move.norm

    def displace(self) -> None:
        """theta + e."""
        assert self._move is not None
        self._move.make()
        self._move = None

    def merge(self, gradients: Gradients) -> bool:
        """GSAM's u from g'."""
        if not self.gsam_alpha or not self._ascended:
            return False
        pieces = [(segment, self._first[segment], gradient) for segment, _, gradient in gradients]
        _, both, second = self.layout.products(pieces).sum(0).tolist()
        along = both / second if second > 0 else 0.0
        if pieces:
            last = [gradient for _, _, gradient in pieces]
            torch._foreach_mul_(last, 1 + self.gsam_alpha * along)
            torch._foreach_add_(last, [first for _, first, _ in pieces], alpha=-self.gsam_alpha)
        return True

    def again(self) -> bool:
        """One step ends it."""
        return False

    def land(self) -> bool:
        """Ends the step; the masters are the base's."""
        self.abandon()
        return False

    def abandon(self) -> None:
        """Forgets g and e."""
        self._ascended, self._move, self._first = False, None, {}

    def _states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return (AVERAGE,) if self.fsam_sigma else ()

    def _friendly(self, segments: list[Segment], gradients: list[Tensor]) -> list[Tensor]:
        """F-SAM's d."""
        if not self.fsam_sigma or self._first_ascent():
            return gradients
        averages = self._averages()
        return [g - self.fsam_sigma * averages[s].view_as(g) for s, g in zip(segments, gradients, strict=True)]

    def _settle(self) -> None:
        if self._ascended and self.fsam_sigma:
            kept = 0.0 if self._first_ascent() else self.fsam_decay
            averages = self._averages()
            for segment, gradient in self._first.items():
                averages[segment].mul_(kept).add_(gradient.view_as(averages[segment]), alpha=1 - kept)
        self._steps += 1

    def _averages(self) -> dict[Segment, Tensor]:
        """m of every segment."""
        found: dict[Segment, Tensor] = {}
        for fragment in self.layout.fragments:
            average = self._create({}, fragment)[AVERAGE]
            found |= {segment: segment.of(average) for segment in fragment.segments}
        return found

    def _first_ascent(self) -> bool:
        return self._steps < self.every

    def _shared(self) -> dict[str, float]:
        return {"steps": self._steps}

    def _load_shared(self, state: Mapping[str, float]) -> None:
        self._steps = int(state.get("steps", 0))
