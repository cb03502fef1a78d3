"""SGD with momentum: torch's fused form, which reads and writes memory once, also where gradients come late."""

from collections.abc import Iterable
from typing import Any

import torch

from lowland.optim.base import require

__all__ = ["SGD"]


class SGD(torch.optim.SGD):
    """SGD with momentum and L2 regularisation.

    With gradient g, momentum m, learning rate eta and weight decay lambda:

        g     <- g + lambda theta
        m     <- mu m + g
        theta <- theta - eta m                    Nesterov: - eta (g + mu m)

    Memory: 4 bytes per parameter, none without momentum.  No extra passes.

    Args:
        params: parameters or groups, as torch.optim takes them.
        lr: learning rate (eta), >= 0.
        momentum: decay of the momentum (mu), in [0, 1).
        weight_decay: added to the gradient (lambda), >= 0.
        nesterov: whether the step looks ahead; needs momentum.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        require(lr >= 0, f"lr >= 0 must hold, got {lr}")
        require(0 <= momentum < 1, f"momentum in [0, 1) must hold, got {momentum}")
        require(weight_decay >= 0, f"weight_decay >= 0 must hold, got {weight_decay}")
        super().__init__(params, lr, momentum, weight_decay=weight_decay, nesterov=nesterov)

    @property
    def _step_supports_amp_scaling(self) -> bool:  # type: ignore[override]
        """torch's word for: the fused step heeds `found_inf`."""
        return not any(_is_dtensor(p) for group in self.param_groups for p in group["params"])

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> bool:
        """What torch's step asks of each group; an own `step` around torch's would run its hooks twice."""
        # torch's fused step has no form for FSDP2's tensors.
        group["foreach"] = any(map(_is_dtensor, group["params"]))
        group["fused"] = not group["foreach"]
        if group["momentum"]:
            self._begin_momenta(group["params"])
        return bool(super()._init_group(group, *lists))  # type: ignore[no-untyped-call]

    def _begin_momenta(self, params: list[torch.Tensor]) -> None:
        """At zero: torch's fused step fails where some parameters of a group have a momentum and others none yet."""
        for p in params:
            if p.grad is not None and self.state[p].get("momentum_buffer") is None:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _is_dtensor(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "to_local")
