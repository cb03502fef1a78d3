"""Two of DeepSpeed's gradient checks in few kernels instead of several per parameter.

Before each step ZeRO waits for the GPU, looks through every gradient for inf and NaN, and takes
every gradient's norm in fp64, one parameter at a time: some thousand small kernels while the GPU
has nothing else to do.  Here all norms are one batched kernel in fp32, and the look is left out,
since a norm that is not finite says the same; ZeRO discards the step on it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

INVALID = -1.0
"""What DeepSpeed takes for the norm of gradients that are not finite."""


def batch_gradient_checks(engine: Any) -> None:
    """Replaces the checks of a DeepSpeed engine's ZeRO optimizer (stages 1 to 3) where training is on a GPU."""
    zero = engine.optimizer
    if not hasattr(zero, "get_grad_norm_direct") or engine.device.type != "cuda":
        return
    zero.get_grad_norm_direct = _norm
    if hasattr(zero, "has_overflow_partitioned_grads_serial") and not getattr(zero, "cpu_offload", False):
        zero.check_overflow = _no_look


def _norm(gradients: Sequence[Tensor], params: Sequence[Tensor], norm_type: float = 2) -> Tensor:
    """The global norm of a group's gradients, of which each rank holds a part; `INVALID` if it is not finite."""
    parts = [gradient.detach() for gradient in gradients]
    squares = torch.stack(torch._foreach_norm(parts, norm_type, dtype=torch.float32)).double().square().sum()
    dist.all_reduce(squares)
    norm = squares.sqrt().float()
    return torch.where(norm.isfinite(), norm, INVALID)


def _no_look(partition_gradients: bool = True) -> None:
    """The norm looks at every gradient anyway."""
