"""From a recipe's optimizer section to parameter groups and a torch optimizer."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from lowland.optim import AdaTAMW
from lowland.trainers.errors import RecipeError
from lowland.trainers.recipe import AdamWConfig, AdaTAMWConfig, OptimizerConfig, SGDConfig


@dataclass(frozen=True)
class Group:
    """Parameters that share their hyper-parameters."""

    parameters: dict[str, nn.Parameter]
    weight_decay: float


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[Group]:
    """The trainable parameters by name: those with weight decay, then those without; a tied one counts once.

    Raises:
        RecipeError: nothing is trainable.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise RecipeError("the model has no trainable parameter: every one is frozen")
    decayed = {name: p for name, p in trainable.items() if config.decay == "all" or p.dim() >= 2}
    rest = {name: p for name, p in trainable.items() if name not in decayed}
    groups = [Group(decayed, config.weight_decay), Group(rest, 0.0)]
    return [group for group in groups if group.parameters]


def build_optimizer(config: OptimizerConfig, groups: list[Group]) -> Optimizer:
    """The optimizer over the groups, with torch's one-kernel step where there is one."""
    params = [{"params": list(g.parameters.values()), "weight_decay": g.weight_decay} for g in groups]
    match config:
        case AdamWConfig():
            return torch.optim.AdamW(params, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        case SGDConfig():
            return torch.optim.SGD(params, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        case AdaTAMWConfig():
            return AdaTAMW(
                params,
                lr=config.lr,
                betas=config.betas,
                gamma=config.gamma,
                eps=config.eps,
                damping_floor=config.damping_floor,
                scope=config.scope,
            )
