"""What an optimizer keeps and needs per parameter, measured on a small one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lowland.optim import Layout, LayoutOptimizer, OwnWeights, Point, layers
from lowland.trainers.engines.state import create_state, owned_state, reductions
from lowland.trainers.estimate.allocations import Allocations
from lowland.trainers.optimizers import build_optimizer, parameter_groups
from lowland.trainers.recipe import OptimizerConfig, StepSize
from lowland.trainers.recipe.optimizers import MixedConfig, SingleOptimizer
from lowland.trainers.recipe.optimizers.around import AroundOptimizer
from lowland.trainers.recipe.optimizers.critical import CriticalGradientsConfig, CriticalMomentaConfig

_PROBE = (64, 64)


@dataclass(frozen=True)
class OptimizerMemory:
    """Bytes per stepped element; masters and gradients are not in it."""

    state: float
    """Kept between steps, in fp32: 8 for AdamW."""
    step: float
    """Needed for a moment inside a step besides."""
    passes: float = 0.0
    """Held between the passes of a step, where it has several; 4 of it are a copy of the masters, which is only held
    where the model computes with them."""


def optimizer_memory(config: OptimizerConfig, network: nn.Module | None = None) -> OptimizerMemory:
    """Takes a step of the recipe's own optimizer on 4096 parameters and counts; so no table can go stale.

    Args:
        config: the optimizer.
        network: whose parameters a mixed optimizer shares out; the others do without.
    """
    if not isinstance(config, MixedConfig):
        return _measured(config)
    if network is None:
        raise ValueError("what a mixed optimizer keeps depends on the model: give it")
    numels = [0] * len(config.rules)
    for group in parameter_groups(network, config):
        numels[group.rule] += sum(parameter.numel() for parameter in group.parameters.values())
    around = {name: getattr(config, name) for name in AroundOptimizer.model_fields}
    parts = [_measured(rule.optimizer.model_copy(update=around)) for rule in config.rules]
    state = sum(part.state * numel for part, numel in zip(parts, numels, strict=True)) / sum(numels)
    return OptimizerMemory(state, max(part.step for part in parts), max(part.passes for part in parts))


def _measured(config: SingleOptimizer) -> OptimizerMemory:
    module = nn.Linear(*_PROBE, bias=False)
    config = _alone(config)
    groups = parameter_groups(module, config)
    optimizer = build_optimizer(config, groups, step=StepSize(1, 1))
    layout = Layout.whole([list(group.parameters.items()) for group in groups])
    if isinstance(optimizer, LayoutOptimizer):
        optimizer.attach(layout)
    create_state(optimizer, layout)
    numel = module.weight.numel()
    gradient, between = torch.ones_like(module.weight), [0]
    take = partial(_take_step, optimizer, layout, gradient)
    take(lambda: None)  # the first step of some moves nothing
    with Allocations() as allocations:
        before = _seen([module.weight, gradient, *_state_tensors(optimizer)], allocations)
        take(lambda: between.append(allocations.held - before))
    held = max(between)
    state, step = _state_bytes(optimizer, numel) / numel, allocations.peak - before - held
    return OptimizerMemory(state, _whole_elements(step, numel), _whole_elements(held, numel))


def _seen(tensors: list[Tensor], allocations: Allocations) -> int:
    """Bytes of tensors made before, which count as soon as an operation returns a view of them."""
    for tensor in tensors:
        tensor.detach()
    return allocations.held


def _take_step(
    optimizer: torch.optim.Optimizer, layout: Layout, gradient: Tensor, between_passes: Callable[[], None]
) -> None:
    """All passes of a step, each with the same gradient."""
    point = Point(optimizer, OwnWeights(optimizer, layout))
    while True:
        for fragment in layout.fragments:
            fragment.tensor.grad = gradient
        if not _pass(optimizer, point, layout):
            return
        between_passes()


def _pass(optimizer: torch.optim.Optimizer, point: Point, layout: Layout) -> bool:
    """What an engine does with the gradients of one pass; returns whether another follows."""
    if not point.steps_now():
        return point.ascend().finite
    point.arrive()
    with reductions(optimizer, layout.gradients()):
        optimizer.step()
    return point.go_on(True)


def _alone(config: SingleOptimizer) -> SingleOptimizer:
    """What it keeps on the device, without other processes."""
    if config.ema is not None and config.ema.cpu:
        config = config.model_copy(update={"ema": None})
    if isinstance(config, CriticalMomentaConfig | CriticalGradientsConfig) and config.buffer_device == "cpu":
        config = config.model_copy(update={"kappa": 0.0})
    if config.diloco is not None:
        config = config.model_copy(update={"diloco": config.diloco.model_copy(update={"groups": 1})})
    if config.sam is not None:
        config = config.model_copy(update={"sam": config.sam.model_copy(update={"every": 1})})
    return config


def _state_bytes(optimizer: torch.optim.Optimizer, numel: int) -> int:
    """Only states of the parameter's size: a step counter is nothing on a large model."""
    tensors = _state_tensors(optimizer)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.numel() >= numel)


def _state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    kept = [state for layer in layers(optimizer) for state in layer.state.values()]
    kept += owned_state(optimizer).values()
    return [value for state in kept for value in state.values() if isinstance(value, Tensor)]


def _whole_elements(peak: int, numel: int) -> float:
    """Scalars that a step makes are nothing either: whole fp32 tensors count."""
    return 4.0 * (peak // (4 * numel))
