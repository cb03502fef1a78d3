"""Two of DeepSpeed's gradient checks in few kernels instead of several per parameter.

Before each step ZeRO waits for the GPU, looks through every gradient for inf and NaN, and takes
every gradient's norm in fp64, one parameter at a time: some thousand small kernels while the GPU
has nothing else to do.  Here the look is left out, since a norm that is not finite says the same and
ZeRO discards the step on it.  The norm is the one that the optimizer came upon when it took its own
sums, and costs nothing; of other optimizers all norms are one batched kernel in fp32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim import LayoutOptimizer

INVALID = -1.0
"""What DeepSpeed takes for the norm of gradients that are not finite."""


def batch_gradient_checks(engine: Any, optimizer: Optimizer) -> None:
    """Replaces the checks of a DeepSpeed engine's ZeRO optimizer (stages 1 to 3) where training is on a GPU."""
    zero = engine.optimizer
    if not hasattr(zero, "get_grad_norm_direct") or engine.device.type != "cuda":
        return
    zero.get_grad_norm_direct = _norm
    if getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False):
        return
    if hasattr(zero, "has_overflow_partitioned_grads_serial"):
        zero.check_overflow = _no_look
    if isinstance(optimizer, LayoutOptimizer):
        hand_on_norm(zero, optimizer)


def hand_on_norm(zero: Any, optimizer: LayoutOptimizer) -> None:
    """Where ZeRO asks for the norm of all gradients, it gets the optimizer's, if that has one."""
    if hasattr(zero, "scaled_global_norm"):  # stages 1 and 2
        zero.scaled_global_norm = _known_or(zero.scaled_global_norm, optimizer, lambda norm: norm)
    elif hasattr(zero, "_get_norm_groups"):  # stage 3, by group
        zero._get_norm_groups = _known_or(zero._get_norm_groups, optimizer, lambda norm: [norm])


def _known_or(
    own: Callable[..., Any], optimizer: LayoutOptimizer, wrapped: Callable[[Tensor], Any]
) -> Callable[..., Any]:
    def norm(*args: Any, **kwargs: Any) -> Any:
        squared = optimizer.squared_norm()
        return own(*args, **kwargs) if squared is None else wrapped(_checked(squared))

    return norm


def _norm(gradients: Sequence[Tensor], params: Sequence[Tensor], norm_type: float = 2) -> Tensor:
    """The global norm of a group's gradients, of which each rank holds a part; `INVALID` if it is not finite."""
    parts = [gradient.detach() for gradient in gradients]
    squares = torch.stack(torch._foreach_norm(parts, norm_type, dtype=torch.float32)).double().square().sum()
    dist.all_reduce(squares)
    return _checked(squares)


def _checked(squared: Tensor) -> Tensor:
    norm = squared.sqrt().float()
    return torch.where(norm.isfinite(), norm, INVALID)


def _no_look(partition_gradients: bool = True) -> None:
    """The norm looks at every gradient anyway."""
