"""Schedule-Free AdamW and SGD (Defazio et al., arXiv 2405.15682): averages instead of a decay of the rate.

With the base iterate z, the average x to evaluate at, the point y where gradients are taken, and the rate eta_t:

    y_t     = (1 - beta1) z_t + beta1 x_t
    z_{t+1} = z_t - eta_t (d_t + lambda y_t)           d_t = g_t, or g_t / (sqrt(v_t / (1 - beta2^t)) + eps)
    x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}              c_t = w_t / (w_1 + ... + w_t)
    w_t     = t^r (max of eta_1 ... eta_t)^p

The weights hold y and a state holds z; x = y + (1 - 1 / beta1) (z - y) is computed when it is wanted, and

    y_{t+1} = (1 - c_t) y_t + c_t z_t - eta_t (1 - beta1 (1 - c_t)) (d_t + lambda y_t)

makes the step without it.  z does not follow if something else changes the weights between steps.

The rate is constant after a warm-up, which is made by whoever sets the groups' `lr`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowland.optim.base import STEP, LayoutOptimizer, Pieces, require
from lowland.optim.layout import Fragment, local

__all__ = ["ScheduleFreeAdamW", "ScheduleFreeSGD", "schedule_free_"]

AVERAGE = ("average_steps", "average_rate", "average_sum", "average_share")
"""What a group knows of its average: t, the largest rate so far, the sum of w, and c of the last step."""


class _ScheduleFree(LayoutOptimizer):
    """The two iterates and the weights of the average, which both methods share."""

    _counts = True

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        beta1 = defaults["betas"][0] if "betas" in defaults else defaults["beta"]
        name = "the first of betas" if "betas" in defaults else "beta"
        require(defaults["lr"] >= 0, f"lr >= 0 must hold, got {defaults['lr']}")
        require(0 < beta1 <= 1, f"{name} in (0, 1] must hold, got {beta1}; x is told from y and z by it")
        require(defaults["weight_decay"] >= 0, f"weight_decay >= 0 must hold, got {defaults['weight_decay']}")
        require(defaults["r"] >= 0, f"r >= 0 must hold, got {defaults['r']}")
        require(defaults["rate_power"] >= 0, f"rate_power >= 0 must hold, got {defaults['rate_power']}")
        self._pending: list[tuple[dict[str, Any], dict[str, float]]] = []
        super().__init__(params, {**defaults, **dict.fromkeys(AVERAGE, 0.0)})

    def _beta1(self, group: Mapping[str, Any]) -> float:
        raise NotImplementedError

    def _directions(self, group: Mapping[str, Any], pieces: Pieces) -> list[Tensor]:
        """d_t of each piece, fp32, as tensors that may be changed."""
        raise NotImplementedError

    def evaluation_weights(self, fragment: Fragment) -> Tensor:
        """The average x; before the first step the weights themselves."""
        y, state = local(fragment.tensor.detach()), self.state.get(fragment.tensor, {})
        if not state.get(STEP, 0):
            return y
        return y.float().lerp(local(state["z"]), 1 - 1 / self._beta1(self.param_groups[fragment.group]))

    def _measure(self, layout: Any, gradients: Any) -> None:
        # An engine may show some groups only when it steps, and all of them now.
        self._pending = [(group, _averaged(group)) for group in self.param_groups]

    def _settle(self) -> None:
        for group, average in self._pending:
            group.update(average)

    def _update(self, group: Mapping[str, Any], pieces: Pieces) -> None:
        if pieces.step == 1:
            torch._foreach_copy_(pieces.states["z"], pieces.weights)
        schedule_free_(
            pieces.weights,
            pieces.states["z"],
            self._directions(group, pieces),
            lr=group["lr"],
            beta=self._beta1(group),
            share=group["average_share"],
            weight_decay=group["weight_decay"],
        )

    def shared_state(self) -> dict[str, float]:
        """What every group knows of its average."""
        return {f"{index}/{key}": group[key] for index, group in enumerate(self.param_groups) for key in AVERAGE}

    def load_shared_state(self, state: Mapping[str, float]) -> None:
        """Restores `shared_state`."""
        for index, group in enumerate(self.param_groups):
            group.update({key: state[f"{index}/{key}"] for key in AVERAGE if f"{index}/{key}" in state})


class ScheduleFreeSGD(_ScheduleFree):
    """SGD whose average takes the place of a decaying rate.

    The rate is 10 to 50 times that of SGD with momentum.  Batch normalisation keeps statistics of y: evaluate after
    some forward passes at x that renew them.

    Memory: 4 bytes per parameter.  No extra passes.

    Args:
        params: parameters or groups, as torch.optim takes them.
        lr: learning rate (eta), >= 0.
        beta: share of the average in the point of the gradient (beta1), in (0, 1]; towards 0 the gradient is taken
            at z and x averages as Polyak and Ruppert do, at 1 it is taken at the average (primal averaging).
        weight_decay: times lr and y (lambda), >= 0.
        r: power of the step in the weights of the average, >= 0.
        rate_power: power of the largest rate so far in the same (p), >= 0.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        r: float = 0.0,
        rate_power: float = 2.0,
    ) -> None:
        defaults = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "r": r, "rate_power": rate_power}
        super().__init__(params, defaults)

    def _states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("z",)

    def _beta1(self, group: Mapping[str, Any]) -> float:
        return float(group["beta"])

    def _directions(self, group: Mapping[str, Any], pieces: Pieces) -> list[Tensor]:
        return [gradient.to(torch.float32, copy=True) for gradient in pieces.gradients]


class ScheduleFreeAdamW(_ScheduleFree):
    """AdamW whose average takes the place of momentum and of a decaying rate.

    The rate is one to ten times AdamW's.  Batch normalisation: as with `ScheduleFreeSGD`.

    Memory: 8 bytes per parameter (z and second moment).  No extra passes.

    Args:
        params: parameters or groups, as torch.optim takes them.
        lr: learning rate (eta), >= 0.
        betas: share of the average in the point of the gradient, in (0, 1], and decay of the second moment (beta2), in
            [0, 1); for very long trainings a first one of 0.95 or 0.98.
        eps: added to the root of the second moment, > 0.
        weight_decay: times lr and y (lambda), >= 0.
        r: power of the step in the weights of the average, >= 0.
        rate_power: power of the largest rate so far in the same (p), >= 0.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        r: float = 0.0,
        rate_power: float = 2.0,
    ) -> None:
        require(0 <= betas[1] < 1, f"the second of betas in [0, 1) must hold, got {betas}")
        require(eps > 0, f"eps > 0 must hold, got {eps}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "r": r}
        super().__init__(params, {**defaults, "rate_power": rate_power})

    def _states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("z", "exp_avg_sq")

    def _beta1(self, group: Mapping[str, Any]) -> float:
        return float(group["betas"][0])

    def _directions(self, group: Mapping[str, Any], pieces: Pieces) -> list[Tensor]:
        beta2, seconds = group["betas"][1], pieces.states["exp_avg_sq"]
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, pieces.gradients, pieces.gradients, 1 - beta2)
        denominators = torch._foreach_div(seconds, 1 - beta2**pieces.step)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        return list(torch._foreach_div(pieces.gradients, denominators))


def schedule_free_(
    params: list[Tensor],
    bases: list[Tensor],
    directions: list[Tensor],
    *,
    lr: float,
    beta: float,
    share: float,
    weight_decay: float,
) -> None:
    """One step of y and z, in place, on lists of equally shaped tensors; `share` is c, and `directions` is used up."""
    if weight_decay:
        torch._foreach_add_(directions, params, alpha=weight_decay)
    torch._foreach_mul_(params, 1 - share)
    torch._foreach_add_(params, bases, alpha=share)
    torch._foreach_add_(params, directions, alpha=-lr * (1 - beta * (1 - share)))
    torch._foreach_add_(bases, directions, alpha=-lr)


def _averaged(group: Mapping[str, Any]) -> dict[str, float]:
    """What a group will know of its average after a step at its rate."""
    steps, rate = group["average_steps"] + 1, max(group["average_rate"], float(group["lr"]))
    weight = steps ** group["r"] * rate ** group["rate_power"]
    total = group["average_sum"] + weight
    return dict(zip(AVERAGE, (steps, rate, total, weight / total if total else 0.0), strict=True))
