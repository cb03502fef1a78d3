"""What an optimizer keeps and needs per parameter, measured on a small one."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowland.optim import Layout, LayoutOptimizer
from lowland.trainers.engines.state import create_state, reductions
from lowland.trainers.estimate.allocations import Allocations
from lowland.trainers.optimizers import build_optimizer, parameter_groups
from lowland.trainers.recipe import OptimizerConfig

_PROBE = (64, 64)


@dataclass(frozen=True)
class OptimizerMemory:
    """Bytes per stepped element; masters and gradients are not in it."""

    state: float
    """Kept between steps, in fp32: 8 for AdamW."""
    step: float
    """Needed for a moment inside a step besides."""


def optimizer_memory(config: OptimizerConfig) -> OptimizerMemory:
    """Takes a step of the recipe's own optimizer on 4096 parameters and counts; so no table can go stale."""
    module = nn.Linear(*_PROBE, bias=False)
    groups = parameter_groups(module, config)
    optimizer = build_optimizer(config, groups)
    layout = Layout.whole([list(group.parameters.items()) for group in groups])
    if isinstance(optimizer, LayoutOptimizer):
        optimizer.attach(layout)
    create_state(optimizer, layout)
    numel = module.weight.numel()
    module.weight.grad = torch.ones_like(module.weight)
    with reductions(optimizer, layout.gradients()), Allocations() as allocations:
        optimizer.step()
    return OptimizerMemory(_state_bytes(optimizer, numel) / numel, _whole_elements(allocations.peak, numel))


def _state_bytes(optimizer: torch.optim.Optimizer, numel: int) -> int:
    """Only states of the parameter's size: a step counter is nothing on a large model."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.numel() >= numel)


def _whole_elements(peak: int, numel: int) -> float:
    """Scalars that a step makes are nothing either: whole fp32 tensors count."""
    return 4.0 * (peak // (4 * numel))
