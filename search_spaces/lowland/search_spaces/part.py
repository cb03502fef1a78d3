"""The base of every part of a search space."""

from pydantic import BaseModel, ConfigDict

Value = bool | int | float | str | None


class Part(BaseModel):
    """A part of a search space: immutable, unknown keys refused, each field described by its docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
