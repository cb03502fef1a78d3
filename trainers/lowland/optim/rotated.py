"""Adam in rotated coordinates (Zhang, Maes et al., arXiv 2410.19964).

With an orthogonal R, the bias-corrected moments of the rotated gradient R g, and learning rate eta:

    theta <- (1 - eta lambda) theta
    theta <- theta - eta R^-1 [ m^ / (sqrt(v^) + eps) ]

Adam is not invariant to R.  What R turns together, for a weight of shape (out, in, ...):

    standard   nothing: AdamW
    output     the weights that feed one output: each row
    input      the weights that leave one input: each column
    layer      the whole tensor
    svd        both sides, by the singular vectors of a gradient G = U S V^T: U^T g V

The first three are random: a permutation, then blocks of at most `block` elements turned by one Haar matrix, the rest
by a smaller one.  Moments are not turned when U and V change.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.base import require
from lowland.optim.whole import dense_gradient

__all__ = ["Basis", "RandomRotation", "RotatedAdam", "haar"]

Basis = Literal["standard", "output", "input", "layer", "svd"]
_BASES = ("standard", "output", "input", "layer", "svd")

VARIATION = "update_singular_variation"
STANDARD, ROTATED = "gradient_density_standard", "gradient_density_rotated"


class RotatedAdam(Optimizer):
    """Adam in rotated coordinates, each tensor by itself: to see how much a training depends on the basis.

    Memory: 8 bytes per parameter; random bases 4 block^2 bytes and 16 per turned element, once for all tensors of one
    size; `svd` 4 (m^2 + n^2) for a matrix of m x n.  Time: two products with R per step; `svd` a full decomposition at
    each refresh.  No extra passes.  Under ZeRO it needs whole tensors: run it through `lowland.optim.Whole`.

    Args:
        params: parameters or groups, as torch.optim takes them; a group may have its own `basis`, for example an
            embedding, whose rows are inputs, `input` where matrices have `output`.
        lr: learning rate (eta), >= 0.
        betas: decay of the moments, each in [0, 1).
        eps: added to the root of the second moment, > 0; in `svd` it must be well above rounding.
        weight_decay: decoupled, times lr, in the standard basis (lambda), >= 0.
        basis: what is turned together; tensors of one dimension are turned by `layer` alone.
        block: most elements that one Haar matrix turns, >= 1.
        seed: of the random bases; they depend on it and on the size of what they turn alone.
        refresh: steps from one decomposition to the next, >= 1; the first is at the first step.
        max_dim: sides longer than this are not turned by `svd`.
        diagnose: every how many steps `measured` is brought up to date, >= 1; None is never.  It takes the singular
            values of every update.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        basis: Basis = "output",
        block: int = 768,
        seed: int = 0,
        refresh: int = 250,
        max_dim: int = 10_000,
        diagnose: int | None = None,
    ) -> None:
        require(lr >= 0, f"lr >= 0 must hold, got {lr}")
        require(all(0 <= beta < 1 for beta in betas), f"betas in [0, 1) must hold, got {betas}")
        require(eps > 0, f"eps > 0 must hold, got {eps}")
        require(weight_decay >= 0, f"weight_decay >= 0 must hold, got {weight_decay}")
        require(block >= 1, f"block >= 1 must hold, got {block}")
        require(refresh >= 1, f"refresh >= 1 must hold, got {refresh}")
        require(diagnose is None or diagnose >= 1, f"diagnose >= 1 must hold, got {diagnose}")
        self.block, self.seed, self.refresh, self.max_dim, self.diagnose = block, seed, refresh, max_dim, diagnose
        self._rotations: dict[tuple[int, torch.device], RandomRotation] = {}
        self._measured: dict[Tensor, dict[str, float]] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "basis": basis}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch.optim does."""
        super().add_param_group(param_group)
        basis = self.param_groups[-1]["basis"]
        require(basis in _BASES, f"basis must be one of {', '.join(_BASES)}, got {basis!r}")

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

    def measured(self) -> dict[str, list[float]]:
        """Of each tensor, as last diagnosed.

        `update_singular_variation`: standard deviation over mean of the singular values of a matrix's update; 0 if it
        is orthogonal.  `gradient_density_...`: |g|_1 / (sqrt(d) |g|_2) in the standard and in the rotated basis,
        from 1/sqrt(d) for one element to 1 for equal ones.
        """
        names = (VARIATION, STANDARD, ROTATED)
        return {name: [values[name] for values in self._measured.values() if name in values] for name in names}

    def _step_one(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        state["step"] = state.get("step", 0) + 1
        there, back = self._turns(state, gradient, group["basis"])
        turned = there(gradient)
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(turned), torch.zeros_like(turned)
        direction = back(_adam(turned, state, group["betas"], group["eps"]))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(direction.to(p.dtype), alpha=-group["lr"])
        if self.diagnose is not None and state["step"] % self.diagnose == 0:
            self._measured[p] = _diagnosis(direction, gradient, turned)

    def _turns(
        self, state: dict[str, Any], gradient: Tensor, basis: Basis
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """R and its inverse for a tensor shaped like the gradient."""
        if basis == "standard" or (gradient.dim() < 2 and basis != "layer"):
            return (lambda x: x), (lambda x: x)
        if basis == "svd":
            return self._singular(state, gradient)
        rows = _rows(gradient, basis)
        rotation = self._rotation(rows.shape[1], gradient.device)
        if basis == "input":
            moved = gradient.movedim(1, 0).shape
            return (
                lambda x: rotation.turn(_rows(x, basis)),
                lambda x: rotation.back(x).view(moved).movedim(0, 1),
            )
        return lambda x: rotation.turn(_rows(x, basis)), lambda x: rotation.back(x).view(gradient.shape)

    def _singular(
        self, state: dict[str, Any], gradient: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        matrix = gradient.flatten(1)
        if (state["step"] - 1) % self.refresh == 0:
            sides = [n <= self.max_dim for n in matrix.shape]
            if any(sides):
                # Beside a long side the short one is whole in the reduced form as well.
                state |= {
                    name: vectors
                    for name, vectors, is_one in zip("UV", _singular_vectors(matrix, all(sides)), sides, strict=True)
                    if is_one
                }
        left, right = state.get("U"), state.get("V")

        def turn(x: Tensor) -> Tensor:
            x = x.flatten(1) if left is None else left.T @ x.flatten(1)
            return x if right is None else x @ right

        def back(x: Tensor) -> Tensor:
            x = x if left is None else left @ x
            return (x if right is None else x @ right.T).view(gradient.shape)

        return turn, back

    def _rotation(self, length: int, device: torch.device) -> "RandomRotation":
        if (length, device) not in self._rotations:
            self._rotations[length, device] = RandomRotation(length, self.block, self.seed, device)
        return self._rotations[length, device]


class RandomRotation:
    """A random rotation of vectors: a permutation, then blocks of it turned by one Haar matrix, the rest by another.

    Args:
        length: of the vectors.
        block: most elements that are turned together; vectors that are not longer are turned without permutation.
        seed: with the length decides the rotation.
        device: where the vectors lie.
    """

    def __init__(self, length: int, block: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + length)
        size = min(length, block)
        self._whole = length // size * size
        order = torch.randperm(length, generator=generator) if length > size else torch.arange(length)
        self._order, self._inverse = order.to(device), order.argsort().to(device)
        self._block = haar(size, generator).to(device)
        self._rest = haar(length - self._whole, generator).to(device)

    def turn(self, x: Tensor) -> Tensor:
        """R x, for each vector along the last dimension."""
        return self._blocks(x[..., self._order], self._block.T, self._rest.T)

    def back(self, x: Tensor) -> Tensor:
        """R^-1 x."""
        return self._blocks(x, self._block, self._rest)[..., self._inverse]

    def _blocks(self, x: Tensor, block: Tensor, rest: Tensor) -> Tensor:
        blocks = x[..., : self._whole].unflatten(-1, (-1, len(block))) @ block
        return torch.cat([blocks.flatten(-2), x[..., self._whole :] @ rest], -1)


def haar(size: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix, uniformly distributed; on the CPU, float32."""
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    signed: Tensor = q * r.diagonal().sign()
    return signed.float()


def _singular_vectors(matrix: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """U and V of matrix = U S V^T, with the largest element of each column of U positive.

    Either sign is right for a pair of vectors, and the last digit of a gradient may decide which one comes; the
    moments, which stay, would then meet gradients of the other sign.
    """
    left, _, right = torch.linalg.svd(matrix, full_matrices=whole)
    signs = _signs(left)
    beyond = right[left.shape[1] :].T
    return left * signs, torch.cat([right[: left.shape[1]].T * signs[: len(right)], beyond * _signs(beyond)], 1)


def _signs(columns: Tensor) -> Tensor:
    """The sign of the largest element of each column."""
    return columns.gather(0, columns.abs().argmax(0, keepdim=True)).sign()[0]


def _rows(x: Tensor, basis: Basis) -> Tensor:
    """The vectors that a basis turns, as rows."""
    if basis == "layer":
        return x.reshape(1, -1)
    return (x if basis == "output" else x.movedim(1, 0)).flatten(1)


def _adam(gradient: Tensor, state: dict[str, Any], betas: tuple[float, float], eps: float) -> Tensor:
    """Adam's bias-corrected direction; the moments move on."""
    state["exp_avg"].lerp_(gradient, 1 - betas[0])
    state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    first, second = state["exp_avg"], state["exp_avg_sq"]
    corrected: Tensor = second.sqrt().div_((1 - betas[1] ** state["step"]) ** 0.5).add_(eps)
    return corrected.reciprocal_().mul_(first).div_(1 - betas[0] ** state["step"])


def _diagnosis(update: Tensor, gradient: Tensor, turned: Tensor) -> dict[str, float]:
    found = {STANDARD: _density(gradient), ROTATED: _density(turned)}
    if update.dim() > 1:
        singular = torch.linalg.svdvals(update.flatten(1))
        found[VARIATION] = float(singular.std(correction=0) / singular.mean())
    return {name: value for name, value in found.items() if value == value}


def _density(x: Tensor) -> float:
    return float(x.abs().sum() / (x.numel() ** 0.5 * x.norm()))
