"""From a recipe's optimizer section to parameter groups and a torch optimizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lowland.optim import Mixed
from lowland.optim.methods import AROUND, METHODS
from lowland.trainers.errors import RecipeError
from lowland.trainers.outside import build_custom, require_exact
from lowland.trainers.recipe import Amount, OptimizerConfig, PlainOptimizer, StepSize
from lowland.trainers.recipe.optimizers import CustomConfig, MixedConfig
from lowland.trainers.recipe.section import Section
from lowland.trainers.rules import assign


@dataclass(frozen=True)
class Group:
    """Parameters that share their hyper-parameters."""

    parameters: dict[str, nn.Parameter]
    weight_decay: float
    rule: int = 0
    """Index of the rule that took them, where the optimizer is mixed."""


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[Group]:
    """The trainable parameters by name: those with weight decay, then those without; a tied one counts once.

    A mixed optimizer has such groups for each rule, in the order of the rules.

    Raises:
        RecipeError: nothing is trainable, or rules do not fit the parameters.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise RecipeError("the model has no trainable parameter: every one is frozen")
    if not isinstance(config, MixedConfig):
        return _by_decay(trainable, config, 0)
    taken = assign(module, config)
    return [
        group
        for index, (rule, members) in enumerate(zip(config.rules, taken, strict=True))
        for group in _by_decay(members, rule.optimizer, index)
    ]


def _by_decay(parameters: Mapping[str, nn.Parameter], config: PlainOptimizer, rule: int) -> list[Group]:
    decayed = {name: p for name, p in parameters.items() if config.decay == "all" or p.dim() >= 2}
    rest = {name: p for name, p in parameters.items() if name not in decayed}
    groups = [Group(decayed, config.weight_decay, rule), Group(rest, 0.0, rule)]
    return [group for group in groups if group.parameters]


def build_optimizer(
    config: OptimizerConfig, groups: Sequence[Group], *, step: StepSize | None = None, in_pieces: bool = False
) -> Optimizer:
    """The optimizer over the groups, by its row in the table of methods, and what the recipe puts around it.

    Args:
        config: the section.
        groups: what `parameter_groups` made of it.
        step: for amounts in tokens or samples.
        in_pieces: whether it will step flat pieces of tensors, as at ZeRO 1 to 3.

    Raises:
        RecipeError: the optimizer does not take such parameters, or is not exact on pieces of them.
    """
    if isinstance(config, MixedConfig):
        members = [
            _single(rule.optimizer, [group for group in groups if group.rule == index], in_pieces)
            for index, rule in enumerate(config.rules)
        ]
        optimizer: Optimizer = Mixed(members)
    else:
        optimizer = _single(config, groups, in_pieces)
    for name, around in AROUND.items():
        section = getattr(config, name)
        if section is not None:
            optimizer = around.make(optimizer, **_arguments(section, step))
    return optimizer


def _single(config: PlainOptimizer, groups: Sequence[Group], in_pieces: bool) -> Optimizer:
    params = [{"params": list(g.parameters.values()), "weight_decay": g.weight_decay} for g in groups]
    if isinstance(config, CustomConfig):
        optimizer = build_custom(config, params)
    else:
        method = METHODS[config.name]
        if method.matrices_only:
            _require_matrices(config.name, groups)
        fields = set(type(config).model_fields) - (set(PlainOptimizer.model_fields) - {"lr"})
        optimizer = method.make(params, **{name: getattr(config, name) for name in fields})
    if in_pieces:
        require_exact(config, optimizer)
    return optimizer


def _require_matrices(name: str, groups: Sequence[Group]) -> None:
    others = {key: tuple(p.shape) for group in groups for key, p in group.parameters.items() if p.dim() != 2}
    if others:
        first, shape = next(iter(others.items()))
        raise RecipeError(
            f"optimizer.name = {name}: it is for matrices alone, and {len(others)} of its parameters are none, as "
            f"{first} of shape {shape}; write optimizer: {{name: mixed, lr: ..., rules: [{{kinds: [matrices], "
            f"optimizer: {{name: {name}}}}}, {{match: '*', optimizer: {{name: adamw}}}}]}}"
        )


def _arguments(section: Section, step: StepSize | None) -> dict[str, Any]:
    """A section's fields, amounts in steps."""
    return {name: _argument(getattr(section, name), step) for name in type(section).model_fields}


def _argument(value: Any, step: StepSize | None) -> Any:
    if not isinstance(value, Amount):
        return value
    if step is None:
        raise ValueError(f"'{value}' cannot be told in steps: nothing says how much a step takes in")
    return value.steps(step)
