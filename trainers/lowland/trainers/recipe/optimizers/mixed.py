"""Several optimizers, each for the parameters that a rule gives it."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from lowland.trainers.recipe.optimizers.around import AroundOptimizer
from lowland.trainers.recipe.optimizers.base import PlainOptimizer
from lowland.trainers.recipe.section import Section

if TYPE_CHECKING:
    from lowland.trainers.recipe.optimizers import SingleOptimizer

Kind = Literal["matrices", "embeddings", "head", "norms", "biases", "tensors"]
INHERITED = ("lr", "weight_decay", "decay")
"""Fields of `mixed` that a rule's optimizer takes over where it does not give its own."""


class Rule(Section):
    """Which parameters an optimizer steps: those for which all of the given conditions hold."""

    match: str | None = None
    """Pattern of the whole name: `*` stands for anything, `?` for one character."""
    regex: str | None = None
    """Regular expression that is found anywhere in the name."""
    kinds: tuple[Kind, ...] = ()
    """Kinds of parameters: matrices, embeddings (tied heads too), head, norms, biases and other vectors, tensors."""
    optimizer: "SingleOptimizer"
    """Their optimizer; lr, weight_decay and decay that it leaves out are those of `mixed`."""

    @field_validator("regex")
    @classmethod
    def _compiles(cls, regex: str | None) -> str | None:
        try:
            re.compile(regex or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return regex

    @model_validator(mode="after")
    def _consistent(self) -> "Rule":
        if self.match is None and self.regex is None and not self.kinds:
            raise ValueError("give match, regex or kinds; match: '*' takes all that is left")
        for name in AroundOptimizer.model_fields:
            if getattr(self.optimizer, name) is not None:
                raise ValueError(f"{name} cannot be put around one rule: give it as optimizer.{name}, for all of them")
        return self

    def __str__(self) -> str:
        conditions = {"match": self.match, "regex": self.regex, "kinds": ", ".join(self.kinds) or None}
        return ", ".join(f"{name}: {value}" for name, value in conditions.items() if value is not None)


class MixedConfig(PlainOptimizer):
    """Several optimizers; the first rule that fits a parameter takes it, and every parameter needs one."""

    name: Literal["mixed"]
    """Optimizers by rule."""
    rules: tuple[Rule, ...]
    """The rules, in their order."""

    @property
    def _alone(self) -> str:
        return f"mixed of {', '.join(rule.optimizer.method for rule in self.rules)}"

    @field_validator("rules")
    @classmethod
    def _some(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if not rules:
            raise ValueError("give at least one rule: {match: '*', optimizer: {...}} takes every parameter")
        return rules

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("rules"), list | tuple):
            return data
        common = {name: data[name] for name in INHERITED if name in data}
        return {**data, "rules": [_with(rule, common) for rule in data["rules"]]}


def _with(rule: Any, common: Mapping[str, Any]) -> Any:
    if not isinstance(rule, Mapping) or not isinstance(rule.get("optimizer"), Mapping):
        return rule
    return {**rule, "optimizer": {**common, **rule["optimizer"]}}
