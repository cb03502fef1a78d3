"""The loss around and between trained weights: random planes, straight lines, and permutations that align networks.

Weights here are whole, by name, on the CPU: `LoadedModel` reads them from a checkpoint however many ranks wrote it.
"""

from lowland.trainers.landscape.batch_norm import recompute_batch_norm
from lowland.trainers.landscape.directions import filter_normalised, moved
from lowland.trainers.landscape.interpolation import barrier, interpolated, require_alike
from lowland.trainers.landscape.loaded import LoadedModel
from lowland.trainers.landscape.matching import match_weights
from lowland.trainers.landscape.networks import permutation_spec
from lowland.trainers.landscape.permutations import Permutations, PermutationSpec, Place, permuted

__all__ = [
    "LoadedModel",
    "PermutationSpec",
    "Permutations",
    "Place",
    "barrier",
    "filter_normalised",
    "interpolated",
    "match_weights",
    "moved",
    "permutation_spec",
    "permuted",
    "recompute_batch_norm",
    "require_alike",
]
