"""Short trainings of the awkward model, in the process group at hand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.optim import Layout, Parameter, evaluation_weights
from lowland.optim.conformance import Subject
from lowland.optim.whole import Whole
from lowland.trainers.engines import Engine, state
from lowland.trainers.engines.torch_engine import TorchEngine
from lowland.trainers.optcheck.cases import DDP, FSDP2, ONE, ZERO, Case
from lowland.trainers.optcheck.model import ROWS, TOKENS, Awkward, batch
from lowland.trainers.optcheck.target import Target
from lowland.trainers.recipe import ShardingConfig
from lowland.trainers.world import World

__all__ = ["STEPS", "Trained", "train_all"]

STEPS = 20
WARMUP = 10
MAX_NORM = 0.3
"""Clips most steps, by one factor over all tensors."""

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Trained:
    """How far each tensor was moved, flat; or the error that ended it."""

    updates: Weights = field(default_factory=dict)
    error: str = ""


def train_all(jobs: Sequence[tuple[Target, Case]]) -> list[Trained]:
    """Trains one after another, on all ranks together; what counts is rank 0's list."""
    return [_guarded(target, case) for target, case in jobs]


def _guarded(target: Target, case: Case) -> Trained:
    """Ranks agree on what failed, so that they begin the next training together."""
    world, error, updates = _world(), "", Weights()
    try:
        updates = _train(target.subject(), case, world)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    errors = [found for found in world.gather(error) if found]
    return Trained(error=errors[0]) if errors else Trained(updates)


@cache
def _world() -> World:
    return World.current(torch.device("cpu"))


def _train(subject: Subject, case: Case, world: World) -> Weights:
    module = Awkward(case, matrices_only=subject.matrices_only)
    if case.bf16:
        # ZeRO 3 would start from the fp32 weights, and the other stages from rounded ones.
        module.bfloat16()
    before = {name: p.detach().to(torch.float32, copy=True) for name, p in module.named_parameters() if p.requires_grad}
    train = _by_loop if case.where in (FSDP2, DDP) else _by_engine
    after = train(subject, case, module, world)
    return {
        name: (weight.reshape(-1) - before[name.removeprefix("evaluated ")].reshape(-1)).numpy()
        for name, weight in after.items()
    }


def _groups(case: Case, subject: Subject, module: nn.Module) -> list[dict[str, Any]]:
    """Groups of parameters; a second one has half the rate."""
    params = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if "groups" not in case.features:
        return [{"params": params}]
    # Every other one, so that a group's tensors do not lie side by side in the model.
    return [{"params": params[::2]}, {"params": params[1::2], "lr": subject.arguments["lr"] / 2}]


def _by_engine(subject: Subject, case: Case, module: nn.Module, world: World) -> dict[str, Tensor]:
    groups = _groups(case, subject, module)
    named = [dict(group["params"]) for group in groups]
    optimizer = subject.build([{**group, "params": [p for _, p in group["params"]]} for group in groups])
    if case.naive and isinstance(optimizer, Whole):
        optimizer = optimizer.inner
    micro_batches = 2 if "accumulation" in case.features else case.micro_batches
    engine = _engine(case, module, optimizer, named, world, micro_batches)
    rows = slice(world.rank * ROWS // world.size, (world.rank + 1) * ROWS // world.size)
    for step in range(STEPS):
        whole = {key: value.flip(0) if case.backwards else value for key, value in batch(step).items()}
        parts = {key: value[rows].chunk(micro_batches) for key, value in whole.items()}
        again = True
        while again:
            for index in range(micro_batches):
                inputs = {key: value[index] for key, value in parts.items()}
                engine.accumulate(inputs, scale=1 / TOKENS, last=index == micro_batches - 1)
            again = engine.step(_factor(step)).again
    found = _gathered(_masters(engine), world)
    if evaluation_weights(optimizer) is not None and not case.bf16:
        trainable = {name for members in named for name in members}
        found |= {f"evaluated {name}": weight for name, weight in engine.full_weights() if name in trainable}
    engine.close()
    return found


def _engine(
    case: Case, module: nn.Module, optimizer: Optimizer, groups: list[dict[str, nn.Parameter]], world: World, cuts: int
) -> Engine:
    max_norm = MAX_NORM if "clipping" in case.features else None
    if case.where == ONE and not case.bf16:
        layout = Layout.whole([list(group.items()) for group in groups])
        return TorchEngine(module, optimizer, layout, world=world, max_grad_norm=max_norm, autocast=False)
    from lowland.trainers.optcheck.engines import MastersEngine, NaiveEngine

    parameters = [
        Parameter(name, tuple(p.shape), index) for index, group in enumerate(groups) for name, p in group.items()
    ]
    stage = 0 if case.where == ONE else ZERO.index(case.where)
    return (NaiveEngine if case.naive else MastersEngine).build(
        module,
        optimizer,
        parameters,
        ShardingConfig(stage=stage, offload_optimizer="offload" in case.features),
        world=world,
        bf16=case.bf16,
        micro_batch=ROWS // world.size // cuts,
        accumulation=cuts,
        max_grad_norm=max_norm,
    )


def _masters(engine: Engine) -> Layout:
    layout: Layout = engine.layout if isinstance(engine, TorchEngine) else engine.masters  # type: ignore[attr-defined]
    return layout


def _gathered(layout: Layout, world: World) -> dict[str, Tensor]:
    """The masters of all ranks, whole and flat."""
    mine = [
        (layout.parameters[s.parameter].name, s.offset, s.of(fragment.tensor.data).reshape(-1).cpu().numpy().copy())
        for fragment in layout.fragments
        for s in fragment.segments
    ]
    ranks = [mine] if layout.ranks is None else world.gather(mine)
    parts: dict[str, list[tuple[int, npt.NDArray[np.float32]]]] = {}
    for name, offset, values in (piece for rank in ranks for piece in rank):
        parts.setdefault(name, []).append((offset, values))
    return {
        name: torch.from_numpy(np.concatenate([values for _, values in sorted(held, key=lambda part: part[0])]))
        for name, held in parts.items()
    }


def _by_loop(subject: Subject, case: Case, module: Awkward, world: World) -> dict[str, Tensor]:
    """Anyone's own: a wrapped module, a closure, `step`."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    model: nn.Module = module
    if case.where == FSDP2:
        fully_shard(module.up)
        fully_shard(module)
    else:
        model = DistributedDataParallel(module)
    optimizer = subject.build(_groups(case, subject, module))
    rows = slice(world.rank * ROWS // world.size, (world.rank + 1) * ROWS // world.size)
    for step in range(STEPS):
        inputs = {key: value[rows] for key, value in batch(step).items()}

        def closure(inputs: dict[str, Tensor] = inputs) -> float:
            optimizer.zero_grad()
            loss = model(**inputs) * (world.size / TOKENS)
            loss.backward()
            return float(loss.detach())

        state.set_lr(optimizer, _factor(step))
        optimizer.step(closure)
    return {name: (p.full_tensor() if case.where == FSDP2 else p).detach() for name, p in _trainable(module)}


def _trainable(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def _factor(step: int) -> float:
    """Linear warm-up."""
    return min(1.0, (step + 1) / WARMUP)
