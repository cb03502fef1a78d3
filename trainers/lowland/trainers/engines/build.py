"""From a recipe and a model to an engine."""

from torch import nn

from lowland.optim import Layout, Parameter
from lowland.trainers.engines.engine import Engine
from lowland.trainers.optimizers import Group, build_optimizer, parameter_groups
from lowland.trainers.recipe import TrainConfig
from lowland.trainers.world import World


def build_engine(module: nn.Module, config: TrainConfig, *, bf16: bool, accumulation: int, world: World) -> Engine:
    """The engine that a recipe asks for, with its optimizer, on `module`."""
    groups = parameter_groups(module, config.optimizer)
    if config.sharding.engine == "torch":
        module.to(world.device)
        return _torch_engine(module, config, groups, bf16=bf16, world=world)
    # Imported here: it takes seconds, and a run on the torch engine does without.
    from lowland.trainers.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine.build(
        module,
        build_optimizer(config.optimizer, groups),
        _parameters(groups),
        config.sharding,
        world=world,
        bf16=bf16,
        micro_batch=config.batch.micro_batch,
        accumulation=accumulation,
        max_grad_norm=config.batch.max_grad_norm,
    )


def _torch_engine(module: nn.Module, config: TrainConfig, groups: list[Group], *, bf16: bool, world: World) -> Engine:
    from lowland.trainers.engines.torch_engine import TorchEngine

    layout = Layout.whole([list(group.parameters.items()) for group in groups])
    return TorchEngine(
        module,
        build_optimizer(config.optimizer, groups),
        layout,
        world=world,
        max_grad_norm=config.batch.max_grad_norm,
        autocast=bf16,
    )


def _parameters(groups: list[Group]) -> list[Parameter]:
    return [
        Parameter(name, tuple(parameter.shape), index)
        for index, group in enumerate(groups)
        for name, parameter in group.parameters.items()
    ]
