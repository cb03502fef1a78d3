"""Torque-Aware Momentum: TAM, AdaTAM and AdaTAMW (Malviya et al., arXiv 2412.18790).

With gradient g, momentum m, smoothed cosine s and learning rate eta:

    S_t = <m_{t-1}, g_t> / (|m_{t-1}| |g_t|)         0 where a norm is 0
    s_t = gamma s_{t-1} + (1 - gamma) S_t
    d_t = (1 + s_t) / 2
    m_t = beta1 m_{t-1} + (epsilon + d_t) g_t        no (1 - beta1), no bias correction

    TAM       theta_t = theta_{t-1} - eta m_t
    AdaTAM    v_t = beta2 v_{t-1} + (1 - beta2) g_t^2
              theta_t = theta_{t-1} - eta m_t / (sqrt(v_t) + eps)
    AdaTAMW   the same after theta_{t-1} <- (1 - eta lambda) theta_{t-1}

The cosine is taken over the whole model (the paper's notation), over a parameter group, or over
each tensor.  A cosine does not change with a positive factor on g, so it is taken from
gradients that are not yet clipped.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lowland.optim import kernels
from lowland.optim.base import LayoutOptimizer, Pieces, require
from lowland.optim.kernels import scaled
from lowland.optim.layout import Gradients, Layout, Segment

__all__ = ["TAM", "AdaTAM", "AdaTAMW", "Scope", "adatamw_", "tam_"]

Scope = Literal["global", "group", "tensor"]


class _TorqueAware(LayoutOptimizer):
    """The damping of gradients by the smoothed cosine, which the variants share."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], *, gamma: float, scope: Scope) -> None:
        require(defaults["lr"] >= 0, f"lr >= 0 must hold, got {defaults['lr']}")
        require(0 <= gamma < 1, f"gamma in [0, 1) must hold, got {gamma}")
        require(defaults["damping_floor"] >= 0, f"damping_floor >= 0 must hold, got {defaults['damping_floor']}")
        require(defaults["weight_decay"] >= 0, f"weight_decay >= 0 must hold, got {defaults['weight_decay']}")
        require(scope in ("global", "group", "tensor"), f"scope must be global, group or tensor, got {scope!r}")
        self.gamma, self.scope = gamma, scope
        self._smoothed: Tensor | None = None
        """s by scope, float64."""
        self._pending: Tensor | None = None
        super().__init__(params, defaults)

    @property
    def cosines(self) -> dict[str, float]:
        """The smoothed cosine s by scope: key `global`, a group's index, or a parameter's name."""
        if self._smoothed is None:
            return {}
        return dict(zip(self._scopes(self.layout)[0], self._smoothed.tolist(), strict=True))

    def _measure(self, layout: Layout, gradients: Gradients) -> None:
        products = layout.products(self._with_momentum(gradients))
        self._squared_norm = products[:, 2].sum()
        sums = self._over_scopes(layout, products)
        cosines = (sums[:, 1] / (sums[:, 0] * sums[:, 2]).sqrt()).nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)
        before = torch.zeros_like(cosines) if self._smoothed is None else self._smoothed.to(cosines.device)
        self._pending = self.gamma * before + (1 - self.gamma) * cosines

    def _with_momentum(self, gradients: Gradients) -> Iterator[tuple[Segment, Tensor, Tensor]]:
        """Every segment, its momentum and its gradient; before the first step the momentum is zero."""
        momenta: dict[int, dict[Segment, Tensor]] = {}
        for segment, tensor, gradient in gradients:
            if id(tensor) not in momenta:
                fragment = self._known(tensor)
                state = self._create(self.param_groups[fragment.group], fragment)
                momenta[id(tensor)] = dict(zip(fragment.segments, fragment.cut(state["exp_avg"]), strict=True))
            yield segment, momenta[id(tensor)][segment], gradient

    def _over_scopes(self, layout: Layout, products: Tensor) -> Tensor:
        """Sums over the parameters of each scope."""
        if self.scope == "global":
            return products.sum(0, keepdim=True)
        keys, members = self._scopes(layout)
        sums = torch.zeros(len(keys), 3, dtype=torch.float64, device=products.device)
        return sums.index_add_(0, kernels.constant(members, products.device), products)

    def _settle(self) -> None:
        self._smoothed = self._pending

    def _dampings(self, group: Mapping[str, Any], pieces: Pieces) -> Tensor:
        """epsilon + d of each piece, float32 [pieces]."""
        assert self._smoothed is not None
        members = kernels.constant(self._scopes(pieces.layout)[1], self._smoothed.device)
        damping = (group["damping_floor"] + (1 + self._smoothed) / 2).float()
        return pieces.of_parameters(damping.index_select(0, members))

    def _scopes(self, layout: Layout) -> tuple[list[str], list[int]]:
        """The scopes' keys, and the index of each parameter's scope."""
        if self.scope == "global":
            return ["global"], [0] * len(layout.parameters)
        if self.scope == "tensor":
            return [parameter.name for parameter in layout.parameters], list(range(len(layout.parameters)))
        groups = [parameter.group for parameter in layout.parameters]
        return [str(group) for group in range(max(groups) + 1)], groups

    def metrics(self) -> dict[str, float]:
        """The smoothed cosine; over many scopes its mean, least and largest."""
        values = list(self.cosines.values())
        if len(values) <= 1:
            return dict.fromkeys(["cosine"][: len(values)], sum(values))
        return {"cosine": sum(values) / len(values), "cosine_min": min(values), "cosine_max": max(values)}

    def shared_state(self) -> dict[str, float]:
        """The smoothed cosines."""
        return self.cosines

    def load_shared_state(self, state: Mapping[str, float]) -> None:
        """Restores the smoothed cosines."""
        if state:
            keys = self._scopes(self.layout)[0]
            self._smoothed = torch.tensor([state[key] for key in keys], dtype=torch.float64)


class TAM(_TorqueAware):
    """SGD with momentum that takes in less of a gradient that turns against it.

    Memory: 4 bytes per parameter (momentum) and one number per scope.  No extra passes.

    Args:
        params: parameters or groups, as torch.optim takes them.
        lr: learning rate (eta); that of SGD with momentum, or up to twice it where gradients are uncorrelated.
        momentum: decay of the momentum (beta), in [0, 1).
        gamma: smoothing of the cosine, in [0, 1).
        damping_floor: epsilon in the paper, >= 0.
        weight_decay: decoupled, times lr, >= 0; the cosine does not see it.
        scope: over what the cosine is taken.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        gamma: float = 0.9,
        damping_floor: float = 1e-8,
        weight_decay: float = 0.0,
        scope: Scope = "global",
    ) -> None:
        require(0 <= momentum < 1, f"momentum in [0, 1) must hold, got {momentum}")
        defaults = {"lr": lr, "momentum": momentum, "damping_floor": damping_floor, "weight_decay": weight_decay}
        super().__init__(params, defaults, gamma=gamma, scope=scope)

    def _states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    def _update(self, group: Mapping[str, Any], pieces: Pieces) -> None:
        tam_(
            pieces.weights,
            pieces.gradients,
            pieces.states["exp_avg"],
            self._dampings(group, pieces),
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
        )


class AdaTAM(_TorqueAware):
    """Adam whose momentum takes in less of a gradient that turns against it; neither moment is bias-corrected.

    Memory: 8 bytes per parameter (momentum, second moment) and one number per scope.  No extra passes.

    Args:
        params: parameters or groups, as torch.optim takes them.
        lr: learning rate (eta); a fifth to a tenth of AdamW's, since there is no (1 - beta1) factor.
        betas: decay of momentum and second moment (beta1, beta2), each in [0, 1).
        gamma: smoothing of the cosine, in [0, 1).
        eps: added to the root of the second moment, > 0.
        damping_floor: epsilon in the paper, >= 0.
        weight_decay: decoupled, times lr (lambda), >= 0; 0 is AdaTAM, more is AdaTAMW.
        scope: over what the cosine is taken.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        gamma: float = 0.9,
        eps: float = 1e-8,
        damping_floor: float = 1e-8,
        weight_decay: float = 0.0,
        scope: Scope = "global",
    ) -> None:
        require(all(0 <= beta < 1 for beta in betas), f"betas in [0, 1) must hold, got {betas}")
        require(eps > 0, f"eps > 0 must hold, got {eps}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "damping_floor": damping_floor,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults, gamma=gamma, scope=scope)

    def _states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _update(self, group: Mapping[str, Any], pieces: Pieces) -> None:
        adatamw_(
            pieces.weights,
            pieces.gradients,
            pieces.states["exp_avg"],
            pieces.states["exp_avg_sq"],
            self._dampings(group, pieces),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


class AdaTAMW(AdaTAM):
    """AdaTAM with decoupled weight decay: AdamW with Torque-Aware Momentum; arguments as `AdaTAM` has them."""


@kernels.fused("triton_steps")
def tam_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    dampings: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One TAM update, in place, on lists of equally shaped tensors; `dampings` [n] is epsilon + d of each."""
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_add_(momenta, scaled(grads, dampings))
    torch._foreach_add_(params, momenta, alpha=-lr)


@kernels.fused("triton_steps")
def adatamw_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    seconds: list[Tensor],
    dampings: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdaTAMW update, in place, on lists of equally shaped tensors; `dampings` [n] is epsilon + d of each."""
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_mul_(momenta, betas[0])
    torch._foreach_add_(momenta, scaled(grads, dampings))
    torch._foreach_mul_(seconds, betas[1])
    torch._foreach_addcmul_(seconds, grads, grads, 1 - betas[1])
    denominators = torch._foreach_sqrt(seconds)
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(params, momenta, denominators, -lr)
