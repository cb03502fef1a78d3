"""What can be measured of a training besides its losses; none of it changes the training.

Each file holds one kind of measure as functions of tensors and modules that are of use alone.  `TrainingMeasures` takes
the ones that a recipe asks for, in a training that may be spread over ranks.
"""

from lowland.trainers.measures.alignment import centred, cka, kernel_alignment
from lowland.trainers.measures.curvature import Extremes, lanczos, top_eigenvalue
from lowland.trainers.measures.difficulty import ForgettingCounts, difficulty_bins, el2n
from lowland.trainers.measures.groups import GroupTotals, crossings
from lowland.trainers.measures.ntk import ntk, projected_ntk, target_alignment
from lowland.trainers.measures.rank import effective_rank, participation_rank
from lowland.trainers.measures.representation import Layers, last_layer
from lowland.trainers.measures.sharpness import sam_sharpness
from lowland.trainers.measures.training import TrainingMeasures

__all__ = [
    "Extremes",
    "ForgettingCounts",
    "GroupTotals",
    "Layers",
    "TrainingMeasures",
    "centred",
    "cka",
    "crossings",
    "difficulty_bins",
    "effective_rank",
    "el2n",
    "kernel_alignment",
    "lanczos",
    "last_layer",
    "ntk",
    "participation_rank",
    "projected_ntk",
    "sam_sharpness",
    "target_alignment",
    "top_eigenvalue",
]
