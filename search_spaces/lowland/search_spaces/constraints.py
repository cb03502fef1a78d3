"""Conditions between recipe fields: `schedule.warmup + schedule.cooldown <= 60`.

Two sides compared by <=, <, >=, > or ==; a side is a sum or difference of products and quotients of fields and numbers,
with blanks around each sign.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lowland.search_spaces.keys import PATH

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
}
_HOW = "write two sides compared by <=, <, >=, > or ==, with blanks around each sign, for example a.b + c.d * 2 <= 60"
_NUMBER = re.compile(r"\d+(\.\d*)?([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?")

_Factor = tuple[str, float | str]
"""`*` or `/`, and a number or a path."""
_Term = tuple[int, tuple[_Factor, ...]]
"""A sign and factors."""


@dataclass(frozen=True)
class Constraint:
    """A condition."""

    text: str
    left: tuple[_Term, ...]
    comparison: str
    right: tuple[_Term, ...]

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Reads a condition.

        Raises:
            ValueError: it is none.
        """
        tokens = text.split()
        signs = [index for index, token in enumerate(tokens) if token in _COMPARISONS]
        if len(signs) != 1:
            raise ValueError(_HOW)
        at = signs[0]
        return cls(text, _side(tokens[:at]), tokens[at], _side(tokens[at + 1 :]))

    @property
    def paths(self) -> list[str]:
        """The fields it speaks of."""
        terms = (*self.left, *self.right)
        return list(dict.fromkeys(f for _, factors in terms for _, f in factors if isinstance(f, str)))

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether it is true; also where a field has no value, as one of another alternative, or a divisor is 0."""
        if any(path not in values for path in self.paths):
            return True
        try:
            left, right = _sum(self.left, values), _sum(self.right, values)
        except ZeroDivisionError:
            return True
        return _COMPARISONS[self.comparison](left, right)


def _side(tokens: list[str]) -> tuple[_Term, ...]:
    """Operands stand at even places, signs between them."""
    if len(tokens) % 2 == 0:
        raise ValueError(_HOW)
    terms: list[_Term] = [(1, (("*", _operand(tokens[0])),))]
    for sign, operand in zip(tokens[1::2], tokens[2::2], strict=True):
        if sign in ("*", "/"):
            outer, factors = terms.pop()
            terms.append((outer, (*factors, (sign, _operand(operand)))))
        elif sign in ("+", "-"):
            terms.append((1 if sign == "+" else -1, (("*", _operand(operand)),)))
        else:
            raise ValueError(f"'{sign}' is no sign; {_HOW}")
    return tuple(terms)


def _operand(token: str) -> float | str:
    if _NUMBER.fullmatch(token):
        return float(token)
    if re.fullmatch(PATH, token):
        return token
    raise ValueError(f"'{token}' is neither a number nor the dotted path of a field; {_HOW}")


def _sum(terms: tuple[_Term, ...], values: Mapping[str, float]) -> float:
    return sum(sign * _product(factors, values) for sign, factors in terms)


def _product(factors: tuple[_Factor, ...], values: Mapping[str, float]) -> float:
    product = 1.0
    for sign, factor in factors:
        value = values[factor] if isinstance(factor, str) else factor
        product = product * value if sign == "*" else product / value
    return product
