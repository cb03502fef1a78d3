"""Critical Momenta (Malviya et al., arXiv 2307.09638) and Critical Gradients (McRae et al., arXiv 2106.10708).

A buffer B keeps the past momenta or gradients of the largest gradient norms, whose priority decays.  Their mean is
added to the present one.  With gradient g, momentum m, second moment v, learning rate eta, b = kappa mean(B), and B as
it was before the step:

    Critical Momenta, step 1            B <- g, and no weight moves but by decoupled decay
                      adam, adamw       m <- beta1 m + (1 - beta1) g,  u = m + b,  v <- beta2 v + (1 - beta2) u^2
                      from step 2       theta <- theta - eta / (1 - beta1^t) u / (sqrt(v / (1 - beta2^t)) + eps)
                      rmsprop           the same without 1 - beta^t
                      sgd               m <- beta1 m + g,  theta <- theta - eta (m + b)
                      then              m is offered to B

    Critical Gradients                  the base optimizer steps with g + b, then g is offered to B

    kappa = 0                           torch's base optimizer: no buffer, no step without motion, v from g^2

The norms are those of gradients that are not clipped: after clipping most are equal, and the latest would win.
What enters B is clipped, and contains coupled weight decay.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lowland.optim.base import Pieces
from lowland.optim.critical_buffer import Buffered
from lowland.optim.critical_updates import adaptive_, lerp_, sgd_

__all__ = ["CriticalGradients", "CriticalMomenta"]


class CriticalMomenta(Buffered):
    """Adam, RMSprop or SGD that keeps its momenta of the steepest steps and overshoots sharp basins with them.

    Steps are larger than the base's: search the rate from a tenth of Adam's.

    The ranking is decided once, from sums that are equal on every rank, so ranks never disagree.  Between runs on
    different numbers of ranks these sums differ by rounding (1e-7 in fp32).  Two priorities closer than that may rank
    differently; the buffers then differ in a slot, and the trajectories part by more than rounding.

    Memory: 4 (sgd) or 8 bytes per parameter, and `buffer_size` times 4, or 2 in bfloat16; for a moment 12 more.  One
    short vector goes to the host each step: a norm, or one of each tensor.  No extra passes.

    Args:
        params: parameters or groups, as torch.optim takes them.
        lr: learning rate (eta), >= 0.
        variant: the base; weight decay is decoupled for adamw, coupled (added to the gradient) for the others.
        betas: decay of momentum and second moment (beta1, beta2), each in [0, 1); sgd has the first alone.
        eps: added to the root of the second moment, > 0.
        weight_decay: lambda, >= 0; decoupled decay is multiplied by lr.
        buffer_size: slots (C), >= 1; the authors searched 5, 10 and 20.
        priority_decay: factor on all priorities each step, in [0, 1]; the authors searched 0.7 and 0.99.
        kappa: weight of the buffer's mean, >= 0; 1 in the paper, 0 is the base optimizer.
        priority: `tensor_norms`, sum of the norms of all tensors' gradients (the authors' code); `global_norm`, norm
            of the whole gradient; `tensor`, each tensor has a ranking of its own by its own norm.
        buffer_dtype: float32 or bfloat16.
        buffer_device: where the buffer lies, for example cpu; None is beside the weights.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def _move(self, group: Mapping[str, Any], pieces: Pieces, past: list[Tensor] | None) -> list[Tensor]:
        if pieces.step == 1:
            return pieces.gradients
        lr, betas, eps, momenta = group["lr"], group["betas"], group["eps"], pieces.states["exp_avg"]
        if self.variant == "sgd":
            sgd_(pieces.weights, pieces.gradients, momenta, past, lr=lr, momentum=betas[0])
            return momenta
        lerp_(momenta, pieces.gradients, betas[0])
        directions = momenta if past is None else list(torch._foreach_add(momenta, past))
        step = None if self.variant == "rmsprop" else pieces.step
        seconds = pieces.states["exp_avg_sq"]
        adaptive_(pieces.weights, directions, seconds, directions, lr=lr, betas=betas, eps=eps, step=step)
        return momenta


class CriticalGradients(Buffered):
    """Adam, RMSprop or SGD that steps with the mean of its largest past gradients besides the present one.

    Arguments, memory, errors and what is said of rankings: as `CriticalMomenta` has them.  The authors'
    default is 10 slots.  With sgd and rmsprop the first of `betas` is torch's momentum, without a factor 1 - beta1.
    """

    def _move(self, group: Mapping[str, Any], pieces: Pieces, past: list[Tensor] | None) -> list[Tensor]:
        gradients = pieces.gradients if past is None else list(torch._foreach_add(pieces.gradients, past))
        self._step_base(group, pieces, gradients)
        return pieces.gradients
