"""From a recipe and a model to an engine."""

from torch import nn
from torch.optim import Optimizer

from lowland.optim import DiLoCo, Layout, Parameter, layers
from lowland.trainers.engines.engine import Engine
from lowland.trainers.errors import RecipeError
from lowland.trainers.optimizers import Group, build_optimizer, parameter_groups
from lowland.trainers.recipe import StepSize, TrainConfig
from lowland.trainers.world import World

ONE_GROUP = "set sharding.engine: torch, or groups: 1, which is an outer step around all workers together"


def build_engine(
    module: nn.Module,
    config: TrainConfig,
    *,
    bf16: bool,
    accumulation: int,
    world: World,
    step: StepSize | None = None,
) -> Engine:
    """The engine that a recipe asks for, with its optimizer, on `module`; `step` is for amounts in tokens or samples.

    Raises:
        RecipeError: optimizer, model and sharding do not go together.
    """
    groups = parameter_groups(module, config.optimizer)
    if config.sharding.engine == "torch":
        module.to(world.device)
    optimizer = build_optimizer(config.optimizer, groups, step=step, in_pieces=config.sharding.zero_stage > 0)
    _check_worker_groups(optimizer, config, world)
    if config.sharding.engine == "torch":
        from lowland.trainers.engines.torch_engine import TorchEngine

        layout = Layout.whole([list(group.parameters.items()) for group in groups])
        return TorchEngine(
            module, optimizer, layout, world=world, max_grad_norm=config.batch.max_grad_norm, autocast=bf16
        )
    # Imported here: it takes seconds, and a run on the torch engine does without.
    from lowland.trainers.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine.build(
        module,
        optimizer,
        _parameters(groups),
        config.sharding,
        world=world,
        bf16=bf16,
        micro_batch=config.batch.micro_batch,
        accumulation=accumulation,
        max_grad_norm=config.batch.max_grad_norm,
    )


def _check_worker_groups(optimizer: Optimizer, config: TrainConfig, world: World) -> None:
    """DiLoCo's groups, as far as the recipe alone cannot tell."""
    outer = next((layer for layer in layers(optimizer) if isinstance(layer, DiLoCo)), None)
    if outer is None or outer.groups == 1:
        return
    place = f"optimizer.diloco.groups = {outer.groups}"
    if config.sharding.engine != "torch":
        raise RecipeError(f"{place}: {config.sharding.engine} averages gradients over all workers; {ONE_GROUP}")
    if outer.several_passes:
        raise RecipeError(f"{place}: sam and lookbehind need the gradients of all workers; remove them or set it to 1")
    if world.size % outer.groups:
        raise RecipeError(f"{place}: must divide the number of workers, which is {world.size}")


def _parameters(groups: list[Group]) -> list[Parameter]:
    return [
        Parameter(name, tuple(parameter.shape), index)
        for index, group in enumerate(groups)
        for name, parameter in group.parameters.items()
    ]
