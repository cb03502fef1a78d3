"""Lion (Chen et al., arXiv 2302.06675): steps by the sign of a momentum.

With gradient g, momentum m, learning rate eta and weight decay lambda:

    theta <- (1 - eta lambda) theta
    theta <- theta - eta sign(beta1 m + (1 - beta1) g)
    m     <- beta2 m + (1 - beta2) g
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowland.optim import kernels
from lowland.optim.base import LayoutOptimizer, Pieces, require

__all__ = ["Lion", "lion_"]


class Lion(LayoutOptimizer):
    """Sign descent along a momentum; every element moves by the rate in each step.

    The rate is a third to a tenth of AdamW's, and the weight decay three to ten times as large, so that their product
    stays.  Where beta1 m + (1 - beta1) g is zero but for rounding, another cut of the batch may give the other sign:
    such an element then differs by 2 eta.

    Memory: 4 bytes per parameter.  No extra passes.

    Args:
        params: parameters or groups, as torch.optim takes them.
        lr: learning rate (eta), >= 0.
        betas: share of the momentum in the step, and its decay (beta1, beta2), each in [0, 1).
        weight_decay: decoupled, times lr (lambda), >= 0.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        require(lr >= 0, f"lr >= 0 must hold, got {lr}")
        require(all(0 <= beta < 1 for beta in betas), f"betas in [0, 1) must hold, got {betas}")
        require(weight_decay >= 0, f"weight_decay >= 0 must hold, got {weight_decay}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    def _update(self, group: Mapping[str, Any], pieces: Pieces) -> None:
        lion_(
            pieces.weights,
            pieces.gradients,
            pieces.states["exp_avg"],
            lr=group["lr"],
            betas=group["betas"],
            weight_decay=group["weight_decay"],
        )


@kernels.fused("triton_steps")
def lion_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """One Lion update, in place, on lists of equally shaped tensors."""
    signs = torch._foreach_mul(exp_avgs, betas[0])
    torch._foreach_add_(signs, grads, alpha=1 - betas[0])
    torch._foreach_sign_(signs)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_add_(params, signs, alpha=-lr)
    torch._foreach_mul_(exp_avgs, betas[1])
    torch._foreach_add_(exp_avgs, grads, alpha=1 - betas[1])
