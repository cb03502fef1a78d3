"""The kinds of parameters."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_serializer, model_validator

from lowland.search_spaces.keys import KeyText, Path
from lowland.search_spaces.part import Part, Value
from lowland.search_spaces.priors import Prior

Unit = Literal["%", "steps", "tokens", "samples", "epochs"]
REACH = 1e9
"""How far beyond its centre, as a factor, a number without ends may lie: storage wants to know ends."""


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


class Unbounded(Part):
    """A positive number of which ratios matter, without ends: a search sets out from its centre and may go anywhere.

    One end may be given; with both it would be a range.
    """

    type: Literal["unbounded"]
    """A number without ends."""
    centre: Annotated[float, Field(gt=0)]
    """Where the search sets out, on the scale that is searched."""
    factor: Annotated[float, Field(gt=1)] = 4.0
    """The first trials lie between centre / factor and centre * factor, later ones as near to one on the front."""
    multiple: Annotated[int, Field(ge=1)] | None = None
    """Values are whole multiples of this, with 1 all whole numbers (null: any number)."""
    low: Annotated[float, Field(gt=0)] | None = None
    """The least value, if there is one."""
    high: Annotated[float, Field(gt=0)] | None = None
    """The largest value, if there is one."""
    drives: tuple[Path, ...] = ()
    """More recipe fields that get the same value."""
    unit: Unit | None = None
    """Unit of the number, for fields that are amounts, as a length in tokens."""

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if self.low is not None and self.high is not None:
            raise ValueError(
                f"low: {self.low:g} and high: {self.high:g} are both ends: write type: float or integer with log: true"
            )
        low, high = self.ends
        if not low <= self.centre <= high:
            raise ValueError(f"the centre must lie between {low:g} and {high:g}, got {self.centre:g}")
        if low == high:
            raise ValueError(f"{low:g} is the only value that is left: change the end or the multiple")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value; where no end is given, a billion times beyond the centre."""
        low, high = self.low or self.centre / REACH, self.high or self.centre * REACH
        if self.multiple is None:
            return low, high
        return max(1, math.ceil(low / self.multiple)) * self.multiple, int(high // self.multiple) * self.multiple

    @property
    def start(self) -> tuple[float, float]:
        """Between which values the first trials lie."""
        return self.nearest(self.centre / self.factor), self.nearest(self.centre * self.factor)

    def nearest(self, value: float) -> float:
        """The nearest value that may be tried, a whole number if those are multiples."""
        low, high = self.ends
        if self.multiple is not None:
            value = round(value / self.multiple) * self.multiple
        return min(max(value, low), high)


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


Parameter = Annotated[FloatRange | IntegerRange | Unbounded | Choice | Branch | Fixed, Field(discriminator="type")]
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
