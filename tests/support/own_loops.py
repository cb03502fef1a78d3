"""DeepSpeed loops that are not lowland's, and the same training in one process."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lowland.optim import SAM, AdaTAMW, Fragment, LayoutOptimizer, Ranks
from lowland.optim.conformance import subjects

ROWS, STEPS = 8, 12


def small_model() -> nn.Module:
    """Two layers whose partitions are cut through tensors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def adatamw(module: nn.Module) -> LayoutOptimizer:
    """In two groups."""
    first, *others = module.parameters()
    return AdaTAMW([{"params": [first]}, {"params": others, "lr": 1e-3}], lr=2e-3, scope="tensor", eps=1e-4)


def data(step: int) -> torch.Tensor:
    """A batch."""
    return torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(step))


def loss_of(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The mean over the batch."""
    return (module(inputs) - inputs[:, :3].sin()).square().mean()


def engine_of(module: nn.Module, optimizer: Any, stage: int, size: int, accumulation: int = 1) -> Any:
    """A DeepSpeed engine."""
    import deepspeed

    # DeepSpeed would compile a kernel that only inference uses, for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    config = {
        "train_micro_batch_size_per_gpu": ROWS // size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    return deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]


def trained(stage: int, accumulation: int, attached: bool) -> dict[str, torch.Tensor]:
    """A loop as DeepSpeed's documentation has it, and one line more."""
    import deepspeed

    from lowland.trainers.engines import attach

    module = small_model()
    engine = engine_of(module, adatamw(module), stage, dist.get_world_size(), accumulation)
    if attached:
        attach(engine)
    for step in range(STEPS):
        mine = data(step).chunk(dist.get_world_size())[dist.get_rank()]
        for part in mine.chunk(accumulation):
            engine.backward(loss_of(engine, part))
            engine.step()
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        found = {name: p.detach().clone() for name, p in module.named_parameters()}
    engine.destroy()
    return found


def unsharded() -> dict[str, torch.Tensor]:
    """The same training in one process."""
    module = small_model()
    optimizer = adatamw(module)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(module, data(step)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        optimizer.step()
    return {name: p.detach() for name, p in module.named_parameters()}


def refusal(stage: int) -> str:
    """What a loop without the line is told."""
    try:
        trained(stage, 1, False)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("it stepped fragments without knowing what they hold")


def refused_layout(stage: int, fault: str) -> str:
    """What a loop is told whose fragments hold other pieces than DeepSpeed's tables say, on rank 0 alone.

    Args:
        stage: ZeRO stage.
        fault: `missing`, `twice` or `shifted`: what is wrong with the first piece of each fragment.
    """
    from lowland.trainers.engines.zero_layout import UnknownLayoutError, ZeroLayout

    plain = ZeroLayout._fragments

    def fragments(layout: ZeroLayout, engine: Any) -> Iterator[Fragment]:
        for fragment in plain(layout, engine):
            first, *rest = fragment.segments or (None,)
            if dist.get_rank() or first is None:
                yield fragment
            elif fault == "shifted":
                fits = first.start + first.numel < fragment.tensor.numel()
                yield replace(fragment, segments=(replace(first, start=first.start + fits), *rest))
            else:
                yield replace(fragment, segments=tuple(rest) if fault == "missing" else (first, first, *rest))

    ZeroLayout._fragments = fragments  # type: ignore[method-assign]
    try:
        trained(stage, 1, True)
    except UnknownLayoutError as error:
        return str(error)
    finally:
        ZeroLayout._fragments = plain  # type: ignore[method-assign]
    raise AssertionError("it trained on fragments that hold something else")


def refused_optimizer(kind: str) -> str:
    """What attaching an optimizer that cannot be attached says."""
    from lowland.trainers.engines import attach

    module = small_model()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    try:
        attach(engine_of(module, SAM(optimizer) if kind == "sam" else optimizer, 1, 1))
    except TypeError as error:
        return str(error)
    raise AssertionError("it was attached")


def reductions_per_step(name: str, where: str) -> list[int]:
    """All-reduces that a method of the table makes in each of three steps of a loop of one's own."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    module = small_model()
    model = fully_shard(module) if where == "FSDP2" else DistributedDataParallel(module)
    optimizer = subjects()[name].build(list(module.parameters()))
    plain, counts = Ranks.add, []

    def add(ranks: Ranks, tensor: torch.Tensor) -> None:
        counts[-1] += 1
        plain(ranks, tensor)

    Ranks.add = add  # type: ignore[method-assign]
    try:
        for step in range(3):
            counts.append(0)
            optimizer.zero_grad()
            loss_of(model, data(step)).backward()
            optimizer.step()
    finally:
        Ranks.add = plain  # type: ignore[method-assign]
    return counts
