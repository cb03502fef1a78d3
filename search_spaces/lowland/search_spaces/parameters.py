"""The kinds of parameters."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_serializer, model_validator

from lowland.search_spaces.keys import KeyText, Path
from lowland.search_spaces.part import Part, Value
from lowland.search_spaces.priors import Prior

Unit = Literal["%", "steps", "tokens", "samples", "epochs"]


class _Driving(Part):
    prior: Prior | None = None
    """What is believed beforehand."""
    drives: tuple[Path, ...] = ()
    """More recipe fields that get the same value."""


class _Range(_Driving):
    log: bool = False
    """Whether ratios rather than differences matter."""
    unit: Unit | None = None
    """Unit of the number, for fields that are amounts, as a warm-up in %."""


class FloatRange(_Range):
    """A number in a closed interval."""

    type: Literal["float"]
    """A number."""
    low: float
    """The least value."""
    high: float
    """The largest value."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Distance between the values that are tried (null: any value)."""

    @model_validator(mode="after")
    def _valid(self) -> Self:
        _check_range(self.low, self.high, self.log, self.step)
        _check_centre(self.prior, self.low, self.high)
        return self


class IntegerRange(_Range):
    """A whole number in a closed interval."""

    type: Literal["integer"]
    """A whole number."""
    low: int
    """The least value."""
    high: int
    """The largest value."""
    step: Annotated[int, Field(ge=1)] = 1
    """Distance between the values that are tried."""

    @model_validator(mode="after")
    def _valid(self) -> Self:
        _check_range(self.low, self.high, self.log, None if self.step == 1 else self.step)
        _check_centre(self.prior, self.low, self.high)
        return self


class Choice(_Driving):
    """One of several values without an order."""

    type: Literal["choice"]
    """One of several."""
    values: Annotated[tuple[Value, ...], Field(min_length=1)]
    """The values."""

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"values must differ, got {list(self.values)}")
        if self.prior is not None and self.prior.centre not in self.values:
            raise ValueError(f"the prior's centre must be one of {list(self.values)}, got {self.prior.centre}")
        return self


class Fixed(Part):
    """No choice: the recipe field always gets this value.  A plain value in a space stands for it."""

    type: Literal["fixed"]
    """One value."""
    value: JsonValue
    """The value."""

    @model_serializer
    def _plain(self) -> Any:
        return {"type": "fixed", "value": self.value} if isinstance(self.value, dict) else self.value


class Branch(Part):
    """A choice between named alternatives that have parameters of their own.

    A branch whose name is a field's path sets it to the alternative's name.
    """

    type: Literal["branch"]
    """Alternatives."""
    alternatives: Annotated[dict[str, dict[KeyText, "Parameter"]], Field(min_length=1)]
    """By name, the parameters that exist only there."""
    prior: Prior | None = None
    """What is believed beforehand."""

    @field_validator("alternatives", mode="before")
    @classmethod
    def _read(cls, alternatives: Any) -> Any:
        if not isinstance(alternatives, Mapping):
            return alternatives
        return {name: plain_values({} if inner is None else inner) for name, inner in alternatives.items()}

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if wrong := [name for name in self.alternatives if not name or "/" in name]:
            raise ValueError(f"names of alternatives have no slash, got '{wrong[0]}'")
        if self.prior is not None and self.prior.centre not in self.alternatives:
            raise ValueError(
                f"the prior's centre must be one of {', '.join(self.alternatives)}, got {self.prior.centre}"
            )
        return self


Parameter = Annotated[FloatRange | IntegerRange | Choice | Branch | Fixed, Field(discriminator="type")]
Branch.model_rebuild()


def plain_values(parameters: Any) -> Any:
    """Values that are no section, as `Fixed`."""
    if not isinstance(parameters, Mapping):
        return parameters
    return {key: _fixed(value) for key, value in parameters.items()}


def _fixed(value: Any) -> Any:
    return value if isinstance(value, Mapping | Part) else {"type": "fixed", "value": value}


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if low >= high:
        raise ValueError(f"low < high must hold, got low: {low:g} and high: {high:g}")
    if log and low <= 0:
        raise ValueError(f"with log, low > 0 must hold, got low: {low:g}")
    if log and step is not None:
        raise ValueError("log and step exclude each other: remove one; powers of two are searched by `log2 path`")
    if step is not None and not math.isclose((high - low) / step, round((high - low) / step), abs_tol=1e-9):
        steps = math.floor((high - low) / step)
        nearest = f"{low + steps * step:g} or {low + (steps + 1) * step:g}"
        raise ValueError(f"high must be low plus a multiple of step, got high: {high:g}; nearest: {nearest}")


def _check_centre(prior: Prior | None, low: float, high: float) -> None:
    if prior is None:
        return
    centre = prior.centre
    if isinstance(centre, bool) or not isinstance(centre, int | float):
        raise ValueError(f"the prior's centre must be a number, got {centre}")
    if not low <= centre <= high and prior.known_at is None:
        raise ValueError(f"the prior's centre must lie between low ({low:g}) and high ({high:g}), got {centre:g}")
