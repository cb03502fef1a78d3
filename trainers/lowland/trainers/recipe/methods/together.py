"""What methods need of the rest of a recipe and of each other."""

from collections.abc import Sequence

from lowland.trainers.recipe.methods.base import MethodSection
from lowland.trainers.recipe.methods.constraints import ConstraintsConfig
from lowland.trainers.recipe.methods.labels import LabelNoiseConfig
from lowland.trainers.recipe.methods.losses import ConFIGConfig
from lowland.trainers.recipe.methods.pruning import DemPConfig, MagnitudePruningConfig
from lowland.trainers.recipe.methods.robustness import (
    CoBalTConfig,
    FixedETFConfig,
    RationaleInvarianceConfig,
    WeightBalancingConfig,
)
from lowland.trainers.recipe.optimizers import CustomConfig, MixedConfig, OptimizerConfig, SingleOptimizer
from lowland.trainers.recipe.sharding import ShardingConfig

_OF_THE_HEAD = (RationaleInvarianceConfig, WeightBalancingConfig)
_OWN_WEIGHTS = ("ema", "nowcast", "lookbehind")
_OF_ELEMENTS = ("adamw", "sgd", "lion")
"""Optimizers all of whose state is of single weights; others keep averages, buffers or matrices beside."""


def require_possible(
    methods: Sequence[MethodSection],
    *,
    optimizer: OptimizerConfig,
    sharding: ShardingConfig,
    group_column: str | None,
    compiled: bool,
) -> None:
    """Raises ValueError where a method lacks something, or two exclude each other."""
    names = [method.name for method in methods]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"methods: {double} is there {names.count(double)} times; once is all it can be")
    for method in methods:
        of_groups = method.needs_groups or (isinstance(method, ConstraintsConfig) and method.of_groups())
        if of_groups and group_column is None:
            raise ValueError(f"methods: {method.name} is about groups: name their column as data.group_column")
        if method.whole_weights and sharding.zero_stage == 3:
            raise ValueError(
                f"methods: {method.name} needs whole weights on each worker, which sharding.stage: 3 does not leave "
                "it: set sharding.stage to at most 2, or remove it"
            )
        if method.eager and compiled:
            raise ValueError(f"methods: {method.name} looks into the network: set model.compile: false, or remove it")
    if methods and optimizer.diloco is not None and optimizer.diloco.groups > 1:
        raise ValueError(
            f"methods: with optimizer.diloco.groups: {optimizer.diloco.groups} workers have other weights and batches, "
            "and methods are of all of them: remove methods, or set groups: 1"
        )
    if "conflict_free" in names and optimizer.sam is not None and optimizer.sam.per_rank:
        raise ValueError(
            "methods: conflict_free combines gradients of all workers, which optimizer.sam.per_rank: true keeps apart: "
            "set per_rank: false, or remove it"
        )
    _require_alone(methods)
    _require_own_loss(methods)
    _require_rewindable(methods, optimizer)
    _require_units(methods)


def _require_alone(methods: Sequence[MethodSection]) -> None:
    fixed = next((method for method in methods if isinstance(method, FixedETFConfig)), None)
    head = next((method for method in methods if isinstance(method, _OF_THE_HEAD)), None)
    if fixed is not None and head is not None:
        raise ValueError(f"methods: {head.name} is about the classifier's weights, which fixed_etf fixes: remove one")


def _require_own_loss(methods: Sequence[MethodSection]) -> None:
    """Gradients of several losses are taken one by one; what others add to the loss would be in each of them."""
    beside = ConFIGConfig | LabelNoiseConfig | MagnitudePruningConfig | CoBalTConfig
    others = [one for one in methods if not isinstance(one, beside)]
    if others and any(isinstance(one, ConFIGConfig) for one in methods):
        raise ValueError(
            f"methods: conflict_free combines the losses of the groups, and {others[0].name} is about the loss too: "
            "remove one; label_noise, magnitude_pruning and cobalt go with it"
        )


def _require_rewindable(methods: Sequence[MethodSection], optimizer: OptimizerConfig) -> None:
    if not any(isinstance(method, MagnitudePruningConfig) and method.rewind == "weights" for method in methods):
        return
    around = next((name for name in _OWN_WEIGHTS if getattr(optimizer, name) is not None), None)
    if around is not None or optimizer.diloco is not None:
        raise ValueError(
            f"methods: magnitude_pruning.rewind: weights clears the optimizer's state, in which optimizer."
            f"{around or 'diloco'} keeps weights: remove one, or set rewind: learning_rate"
        )
    parts = [rule.optimizer for rule in optimizer.rules] if isinstance(optimizer, MixedConfig) else [optimizer]
    if other := next((part.name for part in parts if not _is_of_elements(part)), None):
        raise ValueError(
            f"methods: magnitude_pruning.rewind: weights clears the optimizer's state, and that of {other} is not all "
            f"of single weights: set rewind: learning_rate, or take one of {', '.join(_OF_ELEMENTS)}"
        )


def _is_of_elements(optimizer: SingleOptimizer | MixedConfig) -> bool:
    return optimizer.name in _OF_ELEMENTS or (isinstance(optimizer, CustomConfig) and optimizer.sees == "elements")


def _require_units(methods: Sequence[MethodSection]) -> None:
    """Units can be taken out by one method alone, and only where their weights can become 0."""
    if not any(isinstance(method, MagnitudePruningConfig) and method.structure == "units" for method in methods):
        return
    if any(isinstance(method, DemPConfig) for method in methods):
        raise ValueError(
            "methods: magnitude_pruning.structure: units and demp take out the same units: remove one, or set "
            "structure: weights"
        )
    if any(isinstance(method, WeightBalancingConfig) and method.train == "classifier" for method in methods):
        raise ValueError(
            "methods: magnitude_pruning.structure: units takes out what weight_balancing.train: classifier freezes: "
            "remove one"
        )
