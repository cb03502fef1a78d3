"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321).

For each dimension i of a gradient G, with its unfolding G_(i) along that dimension:

    L_i  <- beta_s L_i + (1 - beta_s) G_(i) G_(i)^T
    Q_i  eigenvectors of L_i, the largest eigenvalue first
    G~   = G in the bases Q_i
    m    <- beta1 m + (1 - beta1) G~
    v    <- beta2 v + (1 - beta2) G~^2
    theta <- theta - eta sqrt(1 - beta2^t) / (1 - beta1^t) Q[m / (sqrt(v) + eps)]
    theta <- (1 - eta lambda) theta

The first gradient only makes L and Q.  Afterwards Q is refreshed every few steps by one power iteration and a QR
decomposition; m is then turned into the new basis, v only follows the order of the eigenvectors.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.base import require
from lowland.optim.whole import dense_gradient

__all__ = ["SOAP"]


class SOAP(Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner, each tensor by itself.

    Memory: 8 bytes per parameter, and for each rotated dimension of n another 8 n^2.  Time: per step four products with
    each basis; per refresh a QR decomposition.  No extra passes.

    Under ZeRO it needs whole tensors: run it through `lowland.optim.Whole`.

    Args:
        params: parameters or groups, as torch.optim takes them.
        lr: learning rate (eta), >= 0.
        betas: decay of the moments (beta1, beta2), each in [0, 1).
        shampoo_beta: decay of L (beta_s), in [0, 1); None is beta2.
        eps: added to the root of the second moment, which is not bias-corrected there, > 0.
        weight_decay: decoupled, times lr, after the step (lambda), >= 0.
        precondition_frequency: steps from one refresh of Q to the next, >= 1.
        max_precondition_dim: dimensions longer than this are not rotated; tensors of one dimension never are and
            take Adam's step.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10_000,
    ) -> None:
        require(lr >= 0, f"lr >= 0 must hold, got {lr}")
        require(all(0 <= beta < 1 for beta in betas), f"betas in [0, 1) must hold, got {betas}")
        require(shampoo_beta is None or 0 <= shampoo_beta < 1, f"shampoo_beta in [0, 1) must hold, got {shampoo_beta}")
        require(eps > 0, f"eps > 0 must hold, got {eps}")
        require(weight_decay >= 0, f"weight_decay >= 0 must hold, got {weight_decay}")
        require(precondition_frequency >= 1, f"precondition_frequency >= 1 must hold, got {precondition_frequency}")
        require(max_precondition_dim >= 0, f"max_precondition_dim >= 0 must hold, got {max_precondition_dim}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "shampoo_beta": shampoo_beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "max_precondition_dim": max_precondition_dim,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, dense_gradient(p.grad), group)
        return loss

    def _step_one(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        beta = group["betas"][1] if group["shampoo_beta"] is None else group["shampoo_beta"]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            for dim in _rotated(gradient, group["max_precondition_dim"]):
                state[f"gram_{dim}"] = _gram(gradient, dim).mul_(1 - beta)
                state[f"basis_{dim}"] = _eigenvectors(gradient, dim)
            return
        state["step"] += 1
        p.add_(_direction(gradient, state, group), alpha=-group["lr"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        dims = _rotated(gradient, group["max_precondition_dim"])
        for dim in dims:
            state[f"gram_{dim}"].lerp_(_gram(gradient, dim), 1 - beta)
        if state["step"] % group["precondition_frequency"] == 0:
            _refresh_(state, dims)


def _rotated(tensor: Tensor, longest: int) -> list[int]:
    """The dimensions that have a basis."""
    return [dim for dim, n in enumerate(tensor.shape) if n <= longest] if tensor.dim() > 1 else []


def _gram(gradient: Tensor, dim: int) -> Tensor:
    unfolded = gradient.movedim(dim, 0).flatten(1)
    return torch.mm(unfolded, unfolded.T)


def _eigenvectors(gradient: Tensor, dim: int) -> Tensor:
    """Those of the gradient's gram matrix, the largest eigenvalue first.

    As singular vectors: without the square they keep twice the digits, and where the gradient has no full rank, as
    most have not, rounding does not choose the vectors of the null space.
    """
    unfolded = gradient.movedim(dim, 0).flatten(1)
    vectors: Tensor = torch.linalg.svd(unfolded, full_matrices=unfolded.shape[0] > unfolded.shape[1])[0]
    return vectors


def _turned(tensor: Tensor, bases: dict[int, Tensor]) -> Tensor:
    """The tensor with each dimension multiplied by the transpose of its matrix."""
    for dim, basis in bases.items():
        tensor = torch.tensordot(tensor, basis, ([dim], [0])).movedim(-1, dim)
    return tensor


def _direction(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Adam's step in the basis, turned back; the moments move on."""
    bases = {dim: state[f"basis_{dim}"] for dim in _rotated(gradient, group["max_precondition_dim"])}
    (beta1, beta2), t = group["betas"], state["step"]
    turned = _turned(gradient, bases)
    state["exp_avg"].lerp_(turned, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
    adam = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
    corrected: Tensor = adam * ((1 - beta2**t) ** 0.5 / (1 - beta1**t))
    return _turned(corrected, {dim: basis.T for dim, basis in bases.items()})


def _refresh_(state: dict[str, Any], dims: list[int]) -> None:
    """New bases, in which the moments go on."""
    changes = {}
    for dim in dims:
        gram, basis = state[f"gram_{dim}"], state[f"basis_{dim}"]
        order = (basis * (gram @ basis)).sum(0).argsort(descending=True)
        state["exp_avg_sq"] = state["exp_avg_sq"].index_select(dim, order)
        new = torch.linalg.qr(gram @ basis[:, order]).Q
        changes[dim] = basis.T @ new
        state[f"basis_{dim}"] = new
    state["exp_avg"] = _turned(state["exp_avg"], changes).contiguous()
