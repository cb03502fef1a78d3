"""Wrong labels, put in on purpose."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.methods.base import MethodSection, Share


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
            if field in self.model_fields_set and self.kind != kind:
                raise ValueError(f"{field} is of kind: {kind}; remove it")
        if (self.rate is None) != (self.kind == "column"):
            raise ValueError("rate is needed by the kinds symmetric and asymmetric, and by no other")
        if (self.column is None) == (self.kind == "column"):
            raise ValueError("kind: column needs column, the one of the wrong labels")
        return self
