"""What CrossSplit needs of the rest of a recipe: its networks are two, and half of each batch is of either."""

from collections.abc import Sequence

from lowland.trainers.recipe.batch import ImageBatchConfig
from lowland.trainers.recipe.image_data import AugmentationConfig
from lowland.trainers.recipe.methods.base import MethodSection
from lowland.trainers.recipe.methods.labels import CrossSplitConfig, LabelNoiseConfig
from lowland.trainers.recipe.methods.pruning import MagnitudePruningConfig

_BESIDE = (CrossSplitConfig, LabelNoiseConfig, MagnitudePruningConfig)
"""Methods that are not about the loss of one network."""
_OF_ONE_NETWORK = ("representation", "ntk", "difficulty", "groups")
"""Measures that look at the last layer."""


def cross_split(methods: Sequence[MethodSection]) -> CrossSplitConfig | None:
    """The recipe's CrossSplit, if it trains two networks."""
    return next((method for method in methods if isinstance(method, CrossSplitConfig)), None)


def require_halves(
    methods: Sequence[MethodSection],
    *,
    batch: ImageBatchConfig,
    augmentation: AugmentationConfig,
    measures: Sequence[str],
    zero_stage: int,
) -> None:
    """Raises ValueError where CrossSplit does not go with the recipe."""
    if (own := cross_split(methods)) is None:
        return
    if own.average and zero_stage == 3:
        raise ValueError(
            f"methods: cross_split.average: {own.average:g} is of whole weights, which sharding.stage: 3 does not "
            "leave a worker: set sharding.stage to at most 2, or average: 0"
        )
    if other := next((method.name for method in methods if not isinstance(method, _BESIDE)), None):
        raise ValueError(
            f"methods: cross_split trains two networks by a loss of its own, and {other} is about one network's: "
            "remove one; label_noise and magnitude_pruning go with it"
        )
    if batch.micro_batch % 2:
        raise ValueError(
            f"methods: cross_split takes half of each micro-batch from either half of the images, but "
            f"batch.micro_batch is {batch.micro_batch}: make it even"
        )
    for name in ("mixup", "cutmix", "label_smoothing"):
        if value := getattr(augmentation, name):
            instead = ", and blend by its own mixup" if name == "mixup" else ""
            raise ValueError(
                f"methods: cross_split makes targets of its own, which augmentation.{name}: {value:g} would change: "
                f"set it to 0{instead}"
            )
    if measure := next((name for name in measures if name in _OF_ONE_NETWORK), None):
        raise ValueError(
            f"measures.names: {measure} looks at the last layer of one network, and cross_split trains two: remove it"
        )
