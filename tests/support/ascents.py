"""Steps of SAM and Lookbehind on ranks, as anyone writes them."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowland.optim import SAM, Layout, Lookbehind
from lowland.trainers.engines.torch_engine import TorchEngine
from lowland.trainers.world import World


class Quadratic(nn.Module):
    """Half the sum of scale * w^2, which each rank has a scale of its own for."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 0.5]))

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        return (0.5 * scale * self.w**2).sum()


SCALES = torch.tensor([[1.0, 4.0], [3.0, 0.5]])


def own_perturbation() -> torch.Tensor:
    """Weights after a step of SAM per rank with engine torch."""
    module, world = Quadratic(), World.current(torch.device("cpu"))
    base = torch.optim.SGD(module.parameters(), lr=0.1)
    layout = Layout.whole([list(module.named_parameters())])
    sam = SAM(base, 0.2, per_rank=True)
    engine = TorchEngine(module, sam, layout, world=world, max_grad_norm=None, autocast=False)
    again, passes = True, 0
    while again:
        engine.accumulate({"scale": SCALES[world.rank]}, scale=1.0, last=True)
        again = engine.step(1.0).again
        passes += 1
    assert passes == 2
    return module.w.detach()


def own_loop(kind: str, name: str) -> list[torch.Tensor]:
    """Whole weights after three steps in a loop of one's own."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    inputs, targets = torch.randn(8, 3), torch.randn(8, 1)
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        fully_shard(model)
    named = list(model.named_parameters())
    if kind == "ddp":
        model = DistributedDataParallel(model)
    if kind != "alone":
        part = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
        inputs, targets = inputs[part], targets[part]
    base = torch.optim.SGD(named, lr=0.1, momentum=0.9)
    optimizer = {
        "asam": lambda: SAM(base, 0.2, adaptive="named_weight"),
        "gsam": lambda: SAM(base, 0.2, gsam_alpha=0.3, fsam_sigma=0.5),
        "lookbehind": lambda: Lookbehind(base, 0.2, k=3),
    }[name]()

    def closure() -> float:
        optimizer.zero_grad()
        loss = ((model(inputs) - targets) ** 2).mean()
        loss.backward()
        return loss.item()

    for _ in range(3):
        optimizer.step(closure)
    if kind == "fsdp":
        assert all(isinstance(p, DTensor) for _, p in named)
        return [p.full_tensor().detach() for _, p in named]  # type: ignore[attr-defined]
    return [p.detach() for _, p in named]
