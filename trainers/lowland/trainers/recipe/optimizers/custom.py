"""Optimizers from outside."""

from typing import Annotated, Any, Literal

from pydantic import Field

from lowland.trainers.recipe.optimizers.base import PlainOptimizer
from lowland.trainers.recipe.section import TARGET


class CustomConfig(PlainOptimizer):
    """Any optimizer that can be imported on the workers, built as `Class(groups, lr=..., **arguments)`."""

    name: Literal["custom"]
    """An optimizer from outside."""
    target: Annotated[
        str,
        Field(
            pattern=TARGET,
            json_schema_extra={"allowed": "the class as `package.module:Class`"},
        ),
    ]
    """The class, as `package.module:Class`."""
    arguments: dict[str, Any] = Field(default={})
    """Its arguments besides parameters and learning rate; weight decay is given by group."""
    sees: Literal["tensors", "elements"] = "tensors"
    """What it must see: whole tensors, which is right for any; or single elements, which spares messages."""
    certificate: str | None = None
    """File written by `lowland optcheck`: with it, one that sees elements may run at ZeRO 1 to 3."""

    @property
    def _alone(self) -> str:
        return self.target
