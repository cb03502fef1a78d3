"""Weight matching of Git Re-Basin (Ainsworth et al., arXiv 2209.04836, algorithm 1)."""

import random
from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lowland.trainers.landscape.permutations import Permutations, PermutationSpec, Place, along

__all__ = ["match_weights"]

SWEEPS = 100


def match_weights(
    spec: PermutationSpec, target: Mapping[str, Tensor], weights: Mapping[str, Tensor], seed: int = 0
) -> Permutations:
    """The permutations of `weights` that bring them, greedily, closest to `target`: sum <target, permuted> is largest.

    One permutation after the other, in random order, is set to its best with all others kept, as a linear assignment,
    until none changes.  The result is a local optimum, which the order decides.

    Cost: per permutation of n units and sweep O(n^2 m + n^3), m the entries of a unit; float64 on the CPU, one copy of
    what is permuted.

    Args:
        spec: of the network.
        target: whole weights by name.
        weights: likewise.
        seed: of the order.
    """
    named = {place.weight for name in spec for place in spec.places[name]}
    there = {name: target[name].double() for name in named}
    here = {name: weights[name].double() for name in named}
    orders = {name: torch.arange(size) for name, size in spec.sizes(weights).items()}
    shuffle = random.Random(seed)
    for _ in range(SWEEPS):
        changed = False
        for name in shuffle.sample(sorted(orders), len(orders)):
            better = _better(spec.places[name], there, here)
            if better is not None:
                changed = True
                orders[name] = orders[name][better]
                for place in spec.places[name]:
                    here[place.weight] = along(here[place.weight], place, better)
        if not changed:
            break
    return orders


def _better(places: list[Place], target: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor | None:
    """The best order of the units on top of the present one; None if the present one is as good."""
    gains = sum(_units(target[p.weight], p) @ _units(weights[p.weight], p).T for p in places)
    assert isinstance(gains, Tensor)
    order = torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
    gain = gains[torch.arange(len(order)), order].sum() - gains.trace()
    # Below this the sums differ by rounding alone.
    return order if float(gain) > 1e-12 * float(gains.abs().sum()) else None


def _units(weight: Tensor, place: Place) -> Tensor:
    """[units, entries of a unit]."""
    return weight.movedim(place.axis, 0).reshape(weight.shape[place.axis] // place.block, -1)
