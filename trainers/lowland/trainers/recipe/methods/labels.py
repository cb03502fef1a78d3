"""Wrong labels, put in on purpose."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.methods.base import MethodSection, Share


class LabelNoiseConfig(MethodSection):
    """Some training labels are made wrong; held-out labels stay, and metrics tell memorised from corrected ones."""

    name: Literal["label_noise"]
    """Label noise."""
    kind: Literal["symmetric", "asymmetric"] = "symmetric"
    """To any other class alike, or to the one that `target` says."""
    rate: Share
    """Part of the labels: of all, or with `asymmetric` of each class that has another target."""
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
        if self.own_too and self.kind == "asymmetric":
            raise ValueError("own_too is of kind: symmetric; remove it")
        if "target" in self.model_fields_set and self.kind == "symmetric":
            raise ValueError("target is of kind: asymmetric; remove it")
        return self
