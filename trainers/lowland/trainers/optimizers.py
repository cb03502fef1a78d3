"""From a recipe's optimizer section to parameter groups and a torch optimizer."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from lowland.optim.methods import AROUND, METHODS
from lowland.trainers.errors import RecipeError
from lowland.trainers.recipe import OptimizerConfig, PlainOptimizer


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
    """The optimizer over the groups, by its row in the table of methods."""
    params = [{"params": list(g.parameters.values()), "weight_decay": g.weight_decay} for g in groups]
    shared = set(PlainOptimizer.model_fields) - {"lr"}
    arguments = {name: getattr(config, name) for name in type(config).model_fields if name not in shared}
    optimizer = METHODS[config.name].make(params, **arguments)
    for name, around in AROUND.items():
        section = getattr(config, name)
        if section is not None:
            optimizer = around.make(
                optimizer, **{field: getattr(section, field) for field in type(section).model_fields}
            )
    return optimizer
