"""The heads and neurons of a transformer, what each costs, and which are kept within a budget."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland.trainers.blocks import repeated_blocks
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.trajectory import Trajectory
from lowland.trainers.models.units import Units, attention_heads, hidden_neurons

_AT_ONCE = 256
"""Examples in a forward pass, copies counted."""


class TransformerUnits:
    """All heads, then all neurons of a network of equal blocks, block by block.

    Args:
        network: on the CPU, whole; it has blocks, heads and neurons.
        cost: its multiplications.
    """

    def __init__(self, network: nn.Module, cost: Multiplications) -> None:
        self.heads, self.neurons = attention_heads(network), hidden_neurons(network)
        self._network, self._cost, self._blocks = network, cost, repeated_blocks(network)
        self._total = sum(cost.by_layer.values())

    @property
    def all(self) -> list[Units]:
        """By layer."""
        return [*self.heads, *self.neurons]

    @property
    def least(self) -> float:
        """The share of multiplications that is left with one head and one neuron in each block."""
        return (self._total - self._removable() + sum(map(self._cost_of, self.all))) / self._total

    def effects(
        self, forward: Callable[[Tensor], Tensor], inputs: Tensor, *, seed: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Tensor:
        """What is changed behind each unit without it, as of `Trajectory.without`; the network is in evaluation mode.

        Args:
            forward: logits [B, K] of inputs [B, ...].
            inputs: [N, ...], on the network's device.
            seed: of the tokens that are compared.
            part: (i, n) computes the i-th of n parts, and 0 for the other units.

        Returns:
            float64 [heads + neurons, 2], on the CPU.
        """
        found = []
        trajectory = Trajectory(forward, self._blocks, inputs, seed=seed)
        for one, block in self._placed(self.all):
            consumer = self._network.get_submodule(one.consumer)
            of_unit = torch.arange(one.count, device=inputs.device) // one.width
            for turn, some in enumerate(of_unit.unique().split(max(1, _AT_ONCE // len(inputs)))):
                if turn % part[1] == part[0]:
                    found.append(trajectory.without(block, consumer, of_unit != some[:, None]).cpu())
                else:
                    found.append(torch.zeros(len(some), 2, dtype=torch.float64))
        return torch.cat(found)

    def within(self, importances: Tensor, share: float) -> Tensor:
        """Which channels are kept: bool, those of all heads and then all neurons, one behind the other.

        Args:
            importances: float64 [heads + neurons].
            share: of the network's multiplications; at least `least`.
        """
        # A share that is `least` must suffice after rounding.
        budget = int(share * self._total + 1e-6) - self._total + self._removable()
        counts = [sum(one.count // one.width for one in units) for units in (self.heads, self.neurons)]
        heads, neurons = importances.split(counts)
        kept = kept_within(self._candidates(self.heads, heads), self._candidates(self.neurons, neurons), budget)
        widths = torch.tensor([one.width for one in self.all for _ in range(one.count // one.width)])
        return torch.cat(kept).repeat_interleave(widths)

    def _candidates(self, units: Sequence[Units], importances: Tensor) -> "Candidates":
        blocks = torch.tensor([block for one, block in self._placed(units) for _ in range(one.count // one.width)])
        return Candidates(importances, blocks, self._cost_of(units[0]))

    def _placed(self, units: Sequence[Units]) -> Iterator[tuple[Units, int]]:
        """Units with the block that they are in."""
        for one in units:
            consumer = self._network.get_submodule(one.consumer)
            yield one, next(i for i, block in enumerate(self._blocks) if consumer in block.modules())

    def _cost_of(self, units: Units) -> int:
        """Multiplications of one of them."""
        layers = (units.producer, *units.beside, units.consumer)
        return sum(self._cost.by_layer[name] for name in layers) * units.width // units.count

    def _removable(self) -> int:
        return sum(self._cost_of(one) * one.count // one.width for one in self.all)


@dataclass(frozen=True)
class Candidates:
    """Units of one kind."""

    importances: Tensor
    """float64 [n]"""
    blocks: Tensor
    """int64 [n]: the block of each, counted from 0."""
    cost: int
    """Multiplications of each, for an example."""

    def ordered(self) -> Tensor:
        """int64 [n]: most important first, and the most important one of each block before all others."""
        order = self.importances.argsort(descending=True, stable=True)
        blocks = self.blocks[order]
        first = functional.one_hot(blocks).cumsum(0).gather(1, blocks[:, None])[:, 0] == 1
        return torch.cat([order[first], order[~first]])


def kept_within(heads: Candidates, neurons: Candidates, budget: int) -> tuple[Tensor, Tensor]:
    """The heads and neurons of the largest total importance within a budget, at least one of both in each block.

    For each number of heads, the most important neurons fill what is left.

    Args:
        heads, neurons: of the same blocks.
        budget: multiplications for an example; enough for one of both in each block.

    Returns:
        bool [heads] and bool [neurons].
    """
    least = len(heads.blocks.unique())
    counts = torch.arange(least, len(heads.blocks) + 1)
    others = ((budget - counts * heads.cost) // neurons.cost).clamp(max=len(neurons.blocks))
    orders = heads.ordered(), neurons.ordered()
    sums = [
        functional.pad(one.importances[order].cumsum(0), (1, 0))
        for one, order in zip((heads, neurons), orders, strict=True)
    ]
    totals = sums[0][counts] + sums[1][others.clamp(min=0)]
    best = totals.masked_fill(others < least, -torch.inf).argmax()
    kept = [torch.zeros(len(order), dtype=torch.bool) for order in orders]
    for flags, order, count in zip(kept, orders, (counts[best], others[best]), strict=True):
        flags[order[:count]] = True
    return kept[0], kept[1]
