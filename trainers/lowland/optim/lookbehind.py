"""Lookbehind (Mordido et al., arXiv 2307.16704): several ascent steps behind one descent, around any optimizer.

With slow weights theta and one batch, phi_0 = phi'_0 = theta and for i = 1..k:

    e_i    = rho T^2 a_i / |T a_i|                a_i the gradient at phi'_{i-1}; T = 1, or |phi'_{i-1}| + eta (ASAM)
    phi'_i = phi'_{i-1} + e_i
    phi_i  = base optimizer's step at phi_{i-1} with b_i, the gradient at phi'_i

    theta <- theta + alpha (phi_k - theta)
    adaptive: alpha = (1 + cos(phi_1 - theta, phi_k - theta)) / 2

The gradient b_i is a_{i+1}, so that k + 1 gradients do; norms are over all trainable tensors of all ranks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.ascent import Adaptive, Ascent, Move
from lowland.optim.base import require
from lowland.optim.layout import Gradients, Layout, Segment, local
from lowland.optim.wrapper import Wrapper

__all__ = ["Lookbehind"]


class Lookbehind(Wrapper):
    """Fast weights take k steps with gradients from ever higher up; the slow weights follow part of the way.

    The base optimizer steps k times per batch at one learning rate, so that its momentum, weight decay and bias
    correction act k times; the schedule advances once.  Between steps the weights are the slow ones: they are what is
    evaluated and saved.  A gradient that is not finite brings the slow weights back; the base's state keeps what it
    took from the finite gradients before.

    Memory: nothing between steps.  Within a step 8 bytes per parameter (slow weights, phi'), 4 more with adaptive
    alpha and k > 1 (phi_1), and 4 for a copy of the fast weights where the model computes with the masters.
    k extra passes over the batch.

    Args:
        base: the optimizer of the fast weights.
        rho: length of each ascent step, >= 0; about ten times as much for ASAM.
        k: ascent steps, >= 1.
        alpha: part of the way, in [0, 1]; `adaptive` takes it from the cosine.
        scope: over what the cosine is taken: each `tensor`, or the `global` model.
        adaptive: tensors with T = |phi'| + eta (ASAM), as in `SAM`.
        eta: added to |phi'| there, >= 0.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    per_rank = False

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        *,
        k: int = 2,
        alpha: float | Literal["adaptive"] = "adaptive",
        scope: Literal["tensor", "global"] = "tensor",
        adaptive: Adaptive = "none",
        eta: float = 0.01,
    ) -> None:
        require(k >= 1, f"k >= 1 must hold, got {k}")
        holds = alpha == "adaptive" if isinstance(alpha, str) else 0 <= alpha <= 1
        require(holds, f"alpha must be in [0, 1] or adaptive, got {alpha!r}")
        require(scope in ("tensor", "global"), f"scope must be tensor or global, got {scope!r}")
        self._ascent = Ascent(rho, adaptive, eta)
        self.k, self.alpha, self.scope = k, alpha, scope
        self._inner = 0
        """Descent steps taken of this outer step."""
        self._slow: list[Tensor] = []
        self._ascending: list[Tensor] = []
        """phi'."""
        self._first: list[Tensor] = []
        """phi_1."""
        self._mean_alpha: float | None = None
        super().__init__(base)

    def steps_now(self) -> bool:
        """Whether the gradients at hand were taken at phi'_i, i >= 1."""
        return bool(self._slow)

    def ascend(self, gradients: Gradients) -> float:
        """phi'_1 from the gradient at the slow weights."""
        self._inner = 0
        self._slow, self._ascending = self._copies(), self._copies()
        return self._climb(gradients)

    def displace(self) -> None:
        """phi'_i."""
        torch._foreach_copy_(self._masters(), self._ascending)

    def merge(self, gradients: Gradients) -> bool:
        """The base steps with the gradients as they are."""
        return False

    def again(self) -> bool:
        """Whether descent steps are left."""
        return 0 < self._inner < self.k

    def land(self) -> bool:
        """Ends the outer step, which `finish` has brought to the slow weights."""
        self._forget()
        return True

    def abandon(self) -> None:
        """Back to the slow weights."""
        if self._slow:
            torch._foreach_copy_(self._masters(), self._slow)
        self._forget()

    def finish(self) -> None:
        """Ends a descent step; the last one ends at the new slow weights."""
        applied = self._prepared and self._settled
        super().finish()
        if not applied or not self._slow:
            return
        if self._inner == self.k:
            self._interpolate()
        elif self._inner == 1 and self.alpha == "adaptive":
            self._first = self._copies()

    def metrics(self) -> dict[str, float]:
        """`alpha` of the last step; per tensor its mean."""
        return {} if self._mean_alpha is None else {"alpha": self._mean_alpha}

    def _measure(self, layout: Layout, gradients: Gradients) -> None:
        if self._inner + 1 < self.k:
            self._climb(gradients)

    def _settle(self) -> None:
        self._inner += 1

    def _climb(self, gradients: Gradients) -> float:
        """phi' moves on; returns the gradients' norm."""
        pieces = list(gradients)
        of = {id(f.tensor): phi for f, phi in zip(self.layout.fragments, self._ascending, strict=True)}
        points = [segment.of(of[id(tensor)]) for segment, tensor, _ in pieces]
        segments = [segment for segment, _, _ in pieces]
        move: Move = self._ascent.move(self.layout, segments, points, [gradient for _, _, gradient in pieces])
        move.make()
        return move.norm

    @torch.no_grad()
    def _interpolate(self) -> None:
        fast, slow = self._views(self._masters()), self._views(self._slow)
        alphas = self._alphas(fast, slow)
        for (segment, reached), (_, start) in zip(fast, slow, strict=True):
            # The form that gives exactly the fast weights at alpha = 1 and the slow ones at 0.
            reached.lerp_(start, 1 - alphas[segment.parameter])
        self._mean_alpha = sum(alphas) / len(alphas)

    def _alphas(self, fast: list[tuple[Segment, Tensor]], slow: list[tuple[Segment, Tensor]]) -> list[float]:
        """alpha of each parameter."""
        count = len(self.layout.parameters)
        if not isinstance(self.alpha, str):
            return [self.alpha] * count
        if self.k == 1:
            return [1.0] * count
        pieces = [
            (segment, first - start, reached - start)
            for (segment, first), (_, reached), (_, start) in zip(self._views(self._first), fast, slow, strict=True)
        ]
        products = self.layout.products(pieces)
        if self.scope == "global":
            products = products.sum(0, keepdim=True).expand(count, -1)
        cosines = products[:, 1] / (products[:, 0] * products[:, 2]).sqrt()
        # A tensor that did not move ends where it was, whatever alpha is.
        found: list[float] = ((1 + cosines.nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)) / 2).tolist()
        return found

    def _forget(self) -> None:
        self._inner, self._slow, self._ascending, self._first = 0, [], [], []

    def _masters(self) -> list[Tensor]:
        return [local(fragment.tensor.detach()) for fragment in self.layout.fragments]

    def _copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._masters()]

    def _views(self, tensors: Sequence[Tensor]) -> list[tuple[Segment, Tensor]]:
        pairs = zip(self.layout.fragments, tensors, strict=True)
        return [(segment, segment.of(tensor)) for fragment, tensor in pairs for segment in fragment.segments]
