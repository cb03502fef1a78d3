"""AdaTAMW as one writes it for whole tensors, without a thought of sharding."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.methods import METHODS


class NaiveAdaTAMW(Optimizer):
    """The cosine is taken over each tensor that `step` sees, whatever that is."""

    def __init__(self, params: Any, *, lr: float, betas: Any, gamma: float, eps: float, **_: Any) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates each tensor by itself."""
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._update(tensor, tensor.grad, group)

    def _update(self, tensor: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[tensor]
        if not state:
            state.update(m=torch.zeros_like(tensor), v=torch.zeros_like(tensor), s=torch.zeros(()))
        m, v, s = state["m"], state["v"], state["s"]
        norms = m.norm() * gradient.norm()
        cosine = (m * gradient).sum() / norms if norms > 0 else torch.zeros(())
        s.mul_(group["gamma"]).add_((1 - group["gamma"]) * cosine)
        tensor.mul_(1 - group["lr"] * group["weight_decay"])
        m.mul_(group["betas"][0]).add_((1e-8 + (1 + s) / 2) * gradient)
        v.mul_(group["betas"][1]).add_((1 - group["betas"][1]) * gradient**2)
        tensor.sub_(group["lr"] * m / (v.sqrt() + group["eps"]))


@contextmanager
def naive_adatamw() -> Iterator[None]:
    """Recipes with adatamw train with the naive one inside."""
    plain = METHODS["adatamw"]
    # Seeing elements, as it says wrongly, it is let under ZeRO.
    METHODS["adatamw"] = replace(plain, make=NaiveAdaTAMW, sees="elements")
    try:
        yield
    finally:
        METHODS["adatamw"] = plain
