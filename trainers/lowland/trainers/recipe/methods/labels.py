"""Wrong labels: put in on purpose, and learnt in spite of."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.amounts import Amount
from lowland.trainers.recipe.methods.base import MethodSection, NotNegative, Point, Share


class LabelNoiseConfig(MethodSection):
    """Some training labels are made wrong; held-out labels stay, and metrics tell memorised from corrected ones."""

    name: Literal["label_noise"]
    """Label noise."""
    kind: Literal["symmetric", "asymmetric", "column"] = "symmetric"
    """To any other class alike, to the one that `target` says, or the labels of another column."""
    rate: Share | None = None
    """Part of the labels: of all, or with `asymmetric` of each class that has another target."""
    column: str | None = None
    """column: that of the wrong labels in `data.path`; `data.label_column` has the right ones."""
    own_too: bool = False
    """symmetric: draw from all classes, the own one too, as in most published results; fewer are wrong then."""
    target: Literal["next", "cifar10"] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default="next", json_schema_extra={"allowed": "next, cifar10, or a list of whole numbers at least 0"}
    )
    """asymmetric: the class that each is taken for: the next, CIFAR-10's usual pairs, or a class for each."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Which labels; not the training's seed, so that runs of several seeds have the same labels."""

    @model_validator(mode="after")
    def _of_kind(self) -> "LabelNoiseConfig":
        for field, kind in (("own_too", "symmetric"), ("target", "asymmetric"), ("column", "column")):
            # Not whether it is set: a recipe that was written out has its defaults too.
            if getattr(self, field) != type(self).model_fields[field].default and self.kind != kind:
                raise ValueError(f"{field} is of kind: {kind}; remove it")
        if (self.rate is None) != (self.kind == "column"):
            raise ValueError("rate is needed by the kinds symmetric and asymmetric, and by no other")
        if (self.column is None) == (self.kind == "column"):
            raise ValueError("kind: column needs column, the one of the wrong labels")
        return self


class CrossSplitConfig(MethodSection):
    """CrossSplit: two networks on disjoint halves correct each other's labels and learn from each other's images."""

    name: Literal["cross_split"]
    """Two networks for wrong labels."""
    warmup: Point = Amount(10, "epochs")
    """Point until which each network learns the labels of its half as they are."""
    correction: bool = True
    """Whether labels are mixed with the prediction of the other half's network."""
    gamma: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.6, 0.8, 1.0)
    """How far the mixture depends on the disagreement, one after the other: 0 is always half and half."""
    gamma_until: tuple[Point, ...] = (Amount(20, "epochs"), Amount(30, "epochs"))
    """How long after the warm-up each of them but the last holds, ascending."""
    temperature: Annotated[float, Field(gt=0, le=1)] = 0.5
    """T of p^(1/T) / sum, by which mixed labels and predictions are sharpened; 1 leaves them."""
    unlabelled: NotNegative = 30.0
    """Largest factor of the squared error on the other half's images; 0 leaves these out."""
    ramp: Point = Amount(16, "epochs")
    """How long after the warm-up that factor rises from 0."""
    mixup: NotNegative = 4.0
    """alpha of Beta(alpha, alpha), by which images are blended after the warm-up; 0 blends none."""
    balance: NotNegative = 1.0
    """Factor of KL(uniform || mean prediction) over the global batch."""
    confidence_penalty: NotNegative = 0.0
    """Factor of the entropy of predictions that is rewarded in the warm-up; 0.1 as published for asymmetric noise."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """What averaged weights keep of themselves in a step, which predict then; 0: the networks do, as published."""

    @model_validator(mode="after")
    def _of_gamma(self) -> "CrossSplitConfig":
        if len(self.gamma_until) != len(self.gamma) - 1:
            raise ValueError(
                f"gamma_until says how long each gamma but the last holds: {len(self.gamma)} gammas need "
                f"{len(self.gamma) - 1} of it, but {len(self.gamma_until)} are given"
            )
        return self

    @property
    def forward_passes(self) -> int:
        """Of one network for each training example after the warm-up, a backward pass counted as two."""
        return (6 if self.unlabelled else 3) + 2
