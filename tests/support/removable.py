"""A small network with units that can be taken out, and engines around it."""

from collections.abc import Collection, Iterator

import torch
from torch import nn

from lowland.optim import Layout, Segment
from lowland.trainers.engines.engine import StatePiece
from lowland.trainers.engines.torch_engine import TorchEngine
from lowland.trainers.methods.base import Problem
from lowland.trainers.world import World

WORLD = World(0, 1, 0, torch.device("cpu"), None)
PROBLEM = Problem(classes=3, class_counts=(1, 1, 1), groups=0, shape=(2, 5, 5), seed=7)
IMAGES = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def small(kill: Collection[int] = ()) -> nn.Sequential:
    """Two chains of units; `kill` are units of the first that can never fire."""
    torch.manual_seed(1)
    body = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()
    )
    network = nn.Sequential(body, nn.Flatten(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        network.get_parameter("0.1.bias")[list(kill)] = -1e3
    return network


def engine_of(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> TorchEngine:
    """Trains it by SGD, or that."""
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    layout = Layout.whole([list(network.named_parameters())])
    return TorchEngine(network, optimizer, layout, world=WORLD, max_grad_norm=None, autocast=False)


class Cut:
    """The masters of a network in several pieces, as ZeRO holds them."""

    replicated = False

    def __init__(self, network: nn.Module, parts: int) -> None:
        self.module, self._parts = network, parts

    def pieces(self) -> Iterator[StatePiece]:
        """Of each parameter so many."""
        for name, parameter in self.module.named_parameters():
            flat = parameter.detach().view(-1)
            offset = 0
            for part in flat.tensor_split(self._parts):
                segment = Segment(parameter=0, start=0, numel=part.numel(), offset=offset)
                yield StatePiece(name, flat.numel(), segment, {"weight": part}, {})
                offset += part.numel()

    def masters_changed(self) -> None:
        """They are the weights."""
