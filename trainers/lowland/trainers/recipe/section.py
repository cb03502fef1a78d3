"""The base of every part of a recipe."""

from pydantic import BaseModel, ConfigDict

TARGET = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""How something to import is written: `package.module:Name`."""


class Section(BaseModel):
    """A part of a recipe: immutable, unknown keys refused, each field described by its docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
