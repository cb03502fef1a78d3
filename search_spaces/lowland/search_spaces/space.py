"""A search space: parameters by the recipe fields that they drive, and conditions between fields."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from lowland.search_spaces.constraints import Constraint
from lowland.search_spaces.keys import Key, KeyText, Path
from lowland.search_spaces.parameters import (
    Branch,
    Choice,
    Fixed,
    FloatRange,
    IntegerRange,
    Parameter,
    Unbounded,
    plain_values,
)
from lowland.search_spaces.part import Part, Value


def _condition(text: str) -> str:
    Constraint.parse(text)
    return text


class Space(Part):
    """A search space."""

    description: str
    """What is searched, and for which recipes."""
    recipes: dict[Path, Annotated[tuple[Value, ...], Field(min_length=1)]] = Field(default={})
    """Recipe fields and the values of which one must be there: the ranges suit no other recipes."""
    parameters: Annotated[dict[KeyText, Parameter], Field(min_length=1)]
    """By the dotted path of the recipe field each drives."""
    constraints: tuple[Annotated[str, AfterValidator(_condition)], ...] = ()
    """Conditions between recipe fields; trials that break one are not tried."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _read(cls, parameters: Any) -> Any:
        return plain_values(parameters)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if twice := next(self.clashes(), None):
            path, one, other = twice
            raise ValueError(f"{path} is driven twice, by {one.name} and by {other.name}: keep one")
        names = [entry.name for entry in self.entries()]
        if same := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two parameters are called {same}: rename the alternative of one")
        for entry in self.entries():
            if isinstance(entry.parameter, Unbounded) and Key.parse(entry.key).scale == "log2 ":
                raise ValueError(f"{entry.name}: of what is unbounded ratios count already: remove log2")
        return self

    def entries(self) -> "list[Entry]":
        """Every parameter, a branch before those of its alternatives."""
        return list(_entries(self.parameters, (), ("parameters",)))

    def clashes(self) -> "Iterator[tuple[str, Entry, Entry]]":
        """Fields that two parameters drive which may be active at once."""
        driven = [(path, entry) for entry in self.entries() for path in entry.paths]
        for (path, one), (other_path, other) in combinations(driven, 2):
            if path == other_path and not one.excludes(other):
                yield path, one, other

    def conditions(self) -> tuple[Constraint, ...]:
        """The constraints, parsed."""
        return tuple(map(Constraint.parse, self.constraints))


@dataclass(frozen=True)
class Entry:
    """A parameter where it stands."""

    name: str
    """Its name in trials: those of the alternatives it belongs to, and its own, with slashes between."""
    key: str
    parameter: FloatRange | IntegerRange | Unbounded | Choice | Branch | Fixed
    where: tuple[tuple[str, str], ...]
    """The names of the branches around it, and the alternative of each."""
    trail: tuple[str, ...]
    """Where it is in the space's file."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The recipe fields it drives."""
        match self.parameter:
            case Branch():
                return (self.key,) if "." in self.key else ()
            case Fixed():
                return (Key.parse(self.key).path,)
            case _:
                return (Key.parse(self.key).path, *self.parameter.drives)

    def active(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the alternatives it belongs to are chosen."""
        return all(parameters.get(branch) == alternative for branch, alternative in self.where)

    def excludes(self, other: "Entry") -> bool:
        """Whether both belong to different alternatives of one branch."""
        chosen = dict(self.where)
        return any(chosen.get(branch, alternative) != alternative for branch, alternative in other.where)

    def field_value(self, searched: Any) -> Any:
        """What the fields become when a trial has this value of the parameter."""
        parameter = self.parameter
        if not isinstance(parameter, FloatRange | IntegerRange | Unbounded):
            return parameter.value if isinstance(parameter, Fixed) else searched
        value = Key.parse(self.key).field_value(searched)
        if parameter.unit is None:
            return value
        return f"{value!r}%" if parameter.unit == "%" else f"{value!r} {parameter.unit}"


def _entries(
    parameters: Mapping[str, Parameter], where: tuple[tuple[str, str], ...], trail: tuple[str, ...]
) -> Iterator[Entry]:
    for key, parameter in parameters.items():
        name = "/".join([*(alternative for _, alternative in where), key])
        yield Entry(name, key, parameter, where, (*trail, key))
        if isinstance(parameter, Branch):
            for alternative, inner in parameter.alternatives.items():
                inside = (*where, (name, alternative))
                yield from _entries(inner, inside, (*trail, key, "alternatives", alternative))
