"""The arithmetic of Critical Momenta, Critical Gradients and their base optimizers, in place on lists of tensors."""

import torch
from torch import Tensor

__all__ = ["adam_", "adaptive_", "lerp_", "recalled", "rmsprop_", "sgd_"]


def recalled(slots: list[list[Tensor]], like: list[Tensor], kappa: float) -> list[Tensor]:
    """kappa times the mean over slots of each tensor, fp32, where `like` lies.

    Summed anew each time where the slots lie: a running sum drifts, and one tensor is moved instead of all slots.
    """
    sums = [tensor.to(torch.float32, copy=True) for tensor in slots[0]]
    for slot in slots[1:]:
        torch._foreach_add_(sums, slot)
    torch._foreach_mul_(sums, kappa / len(slots))
    return [total.to(weight.device) for total, weight in zip(sums, like, strict=True)]


def lerp_(averages: list[Tensor], values: list[Tensor], beta: float) -> None:
    """Moving averages: a <- beta a + (1 - beta) x."""
    torch._foreach_lerp_(averages, values, 1 - beta)


def adaptive_(
    params: list[Tensor],
    directions: list[Tensor],
    seconds: list[Tensor],
    squared: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    step: int | None,
) -> None:
    """Takes `squared` into the second moments and moves along directions over their roots.

    Args:
        params: what is moved.
        directions: u.
        seconds: v.
        squared: what v is made of.
        lr: eta.
        betas: (beta1, beta2); the first for the correction alone.
        eps: added to the root.
        step: t of the corrections 1 - beta^t; None for none.
    """
    torch._foreach_mul_(seconds, betas[1])
    torch._foreach_addcmul_(seconds, squared, squared, 1 - betas[1])
    denominators = torch._foreach_sqrt(seconds)
    if step is not None:
        torch._foreach_div_(denominators, (1 - betas[1] ** step) ** 0.5)
        lr = lr / (1 - betas[0] ** step)
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(params, directions, denominators, -lr)


def adam_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    seconds: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> None:
    """One step of Adam."""
    lerp_(momenta, grads, betas[0])
    adaptive_(params, momenta, seconds, grads, lr=lr, betas=betas, eps=eps, step=step)


def rmsprop_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    seconds: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of RMSprop with torch's momentum: v, then m <- beta1 m + g / (sqrt(v) + eps), theta <- theta - eta m."""
    torch._foreach_mul_(seconds, betas[1])
    torch._foreach_addcmul_(seconds, grads, grads, 1 - betas[1])
    denominators = torch._foreach_sqrt(seconds)
    torch._foreach_add_(denominators, eps)
    torch._foreach_mul_(momenta, betas[0])
    torch._foreach_addcdiv_(momenta, grads, denominators)
    torch._foreach_add_(params, momenta, alpha=-lr)


def sgd_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    past: list[Tensor] | None,
    *,
    lr: float,
    momentum: float,
) -> None:
    """One step of SGD with momentum: m <- beta1 m + g, theta <- theta - eta (m + b)."""
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_add_(momenta, grads)
    torch._foreach_add_(params, momenta if past is None else torch._foreach_add(momenta, past), alpha=-lr)
