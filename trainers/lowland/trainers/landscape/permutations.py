"""Which axes of which weights can be permuted together without changing what a network computes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["PermutationSpec", "Permutations", "Place", "permuted"]

Permutations = Mapping[str, Tensor]
"""By name: int64 [n], at i the unit that comes to place i."""


@dataclass(frozen=True)
class Place:
    """An axis along which a permutation acts."""

    weight: str
    axis: int
    block: int = 1
    """Entries that belong to one unit and keep their order, as those of an attention head."""


@dataclass
class PermutationSpec:
    """The permutations of a network, by name, and the places of each."""

    places: dict[str, list[Place]] = field(default_factory=lambda: defaultdict(list))

    def add(self, permutation: str, axis: int, *weights: str, block: int = 1) -> None:
        """Lets a permutation act along an axis of weights."""
        self.places[permutation] += [Place(weight, axis, block) for weight in weights]

    def of(self, weights: Mapping[str, Tensor]) -> "PermutationSpec":
        """The spec without the places of weights that are not there."""
        kept = {name: [place for place in places if place.weight in weights] for name, places in self.places.items()}
        return PermutationSpec({name: places for name, places in kept.items() if places})

    def sizes(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """How many units each permutation has.

        Raises:
            ValueError: the places of one do not agree.
        """
        return {name: self._size(name, weights) for name in self.places}

    def _size(self, permutation: str, weights: Mapping[str, Tensor]) -> int:
        sizes = {p.weight: weights[p.weight].shape[p.axis] / p.block for p in self.places[permutation]}
        if len(set(sizes.values())) != 1 or next(iter(sizes.values())) % 1:
            raise ValueError(f"the places of permutation {permutation} do not agree: {sizes}")
        return int(next(iter(sizes.values())))

    def random(self, weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """A random permutation of each."""
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randperm(size, generator=generator) for name, size in self.sizes(weights).items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)


def permuted(weights: Mapping[str, Tensor], spec: PermutationSpec, permutations: Permutations) -> dict[str, Tensor]:
    """The weights with every permutation carried out: the same function, other numbers."""
    result = dict(weights)
    for name, order in permutations.items():
        for place in spec.places[name]:
            result[place.weight] = along(result[place.weight], place, order)
    return result


def along(weight: Tensor, place: Place, order: Tensor) -> Tensor:
    """A weight with the units along an axis in another order."""
    entries = (order[:, None] * place.block + torch.arange(place.block)).flatten()
    return weight.index_select(place.axis, entries.to(weight.device))
