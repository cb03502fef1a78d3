"""Amounts of training: `300 steps`, `2e9 tokens`, `3 epochs`, `5%`, `10 minutes`."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

Unit = Literal["steps", "tokens", "epochs", "%", "minutes", "evaluations", "samples"]

_NUMBER = r"([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+)"
_PATTERN = re.compile(rf"\s*{_NUMBER}\s*([kKMBT]?)\s*(%|[a-z]+)\s*")
_MULTIPLIER = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class StepSize:
    """What an optimizer step takes in, over all ranks."""

    tokens: int
    """Padding included."""
    samples: int
    """Sequences, images or pairs."""


@dataclass(frozen=True)
class Amount:
    """A positive quantity with its unit; zero means "none"."""

    value: float
    unit: Unit

    def __str__(self) -> str:
        # Exact, so that a recipe that is written out and read again is the same.
        whole = self.value % 1 == 0 and self.value < 1e16
        number = str(int(self.value)) if whole else repr(self.value)
        return f"{number}%" if self.unit == "%" else f"{number} {self.unit}"

    @classmethod
    def parse(cls, text: str) -> "Amount":
        """Reads `NUMBER[k|M|B|T] UNIT`; a singular unit is accepted."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"write a number and a unit ({', '.join(get_args(Unit))}), for example '300 steps'")
        number, multiplier, unit = match.groups()
        plural = unit if unit == "%" or unit.endswith("s") else unit + "s"
        if plural not in get_args(Unit):
            raise ValueError(f"unknown unit '{unit}'; the units are {', '.join(get_args(Unit))}")
        value = float(number.replace("_", "")) * _MULTIPLIER[multiplier]
        if not math.isfinite(value):
            raise ValueError("the number is too large")
        return cls(value, plural)  # type: ignore[arg-type]

    def in_steps(self, *, tokens_per_step: int, steps_per_epoch: float, total_steps: int | None = None) -> int:
        """The number of optimizer steps this amounts to, rounded up.

        `total_steps` is what a percentage is taken of; it is rounded to the nearest step.
        """
        match self.unit:
            case "steps":
                return math.ceil(self.value)
            case "tokens":
                return math.ceil(self.value / tokens_per_step)
            case "epochs":
                return math.ceil(self.value * steps_per_epoch)
            case "%" if total_steps is not None:
                return round(self.value / 100 * total_steps)
            case _:
                raise ValueError(f"'{self}' is not a number of steps")

    def steps(self, size: StepSize) -> float:
        """The optimizer steps this amounts to, not rounded."""
        match self.unit:
            case "steps":
                return self.value
            case "tokens":
                return self.value / size.tokens
            case "samples":
                return self.value / size.samples
            case _:
                raise ValueError(f"'{self}' is not a number of steps")


class Units:
    """Pydantic annotation: an `Amount` in one of the given units."""

    def __init__(self, *allowed: Unit) -> None:
        self.allowed = allowed

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="always")
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        units = "|".join(unit if unit == "%" else unit.removesuffix("s") + "s?" for unit in self.allowed)
        return {
            "type": "string",
            "pattern": rf"^\s*{_NUMBER}\s*[kKMBT]?\s*({units})\s*$",
            # In words, for the reference and for mistakes; other readers of the schema ignore it.
            "allowed": f"a number and a unit ({', '.join(self.allowed)})",
        }

    def _validate(self, value: Any) -> Amount:
        if isinstance(value, Amount):
            amount = value
        elif isinstance(value, str):
            amount = Amount.parse(value)
        else:
            raise ValueError(f"write a number and a unit ({', '.join(self.allowed)}), for example '{self._example()}'")
        if amount.unit not in self.allowed:
            raise ValueError(f"the unit must be one of {', '.join(self.allowed)}, not {amount.unit}")
        if amount.unit == "%" and amount.value > 100:
            raise ValueError("a percentage is at most 100%")
        return amount

    def _example(self) -> str:
        return "5%" if self.allowed[0] == "%" else f"100 {self.allowed[0]}"


TrainingLength = Annotated[Amount, Units("steps", "tokens", "epochs")]
PartOfTraining = Annotated[Amount, Units("%", "steps", "tokens")]
Interval = Annotated[Amount, Units("steps", "tokens", "epochs")]
HalfLife = Annotated[Amount, Units("samples", "tokens", "steps")]
SaveInterval = Annotated[Amount, Units("steps", "minutes", "evaluations")]
