"""Which rule of a mixed optimizer takes which parameter."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import get_args

from torch import nn

from lowland.trainers.errors import RecipeError
from lowland.trainers.kinds import parameter_kinds
from lowland.trainers.recipe.optimizers.mixed import Kind, MixedConfig, Rule

_SHOWN = 5


def assign(module: nn.Module, config: MixedConfig) -> list[dict[str, nn.Parameter]]:
    """The trainable parameters of each rule, by name; the first rule that fits takes a parameter.

    Raises:
        RecipeError: a parameter is left over, or a rule takes none.
    """
    kinds = parameter_kinds(module)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    taken: list[dict[str, nn.Parameter]] = [{} for _ in config.rules]
    left = []
    for name, parameter in trainable.items():
        index = next((i for i, rule in enumerate(config.rules) if fits(rule, name, kinds[name])), None)
        if index is None:
            left.append(name)
        else:
            taken[index][name] = parameter
    if left:
        raise RecipeError(_left_over(left, config.rules, kinds))
    for index, (rule, members) in enumerate(zip(config.rules, taken, strict=True)):
        if not members:
            raise RecipeError(_empty(index, rule, config.rules, {name: kinds[name] for name in trainable}))
    return taken


def fits(rule: Rule, name: str, kind: Kind) -> bool:
    """Whether all of a rule's conditions hold."""
    return (
        (rule.match is None or fnmatchcase(name, rule.match))
        and (rule.regex is None or re.search(rule.regex, name) is not None)
        and (not rule.kinds or kind in rule.kinds)
    )


def _left_over(left: Sequence[str], rules: Sequence[Rule], kinds: Mapping[str, Kind]) -> str:
    shown = ", ".join(f"{name} ({kinds[name]})" for name in left[:_SHOWN])
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    nearest = max(range(len(rules)), key=lambda index: _nearness(rules[index], left[0], kinds[left[0]]))
    return (
        f"optimizer.rules: no rule takes {shown}{more}; the nearest to {left[0]} is rules.{nearest} "
        f"({rules[nearest]}); a last rule with match: '*' takes all that is left"
    )


def _empty(index: int, rule: Rule, rules: Sequence[Rule], kinds: Mapping[str, Kind]) -> str:
    start = f"optimizer.rules.{index} ({rule}) takes no parameter"
    fitting = [name for name, kind in kinds.items() if fits(rule, name, kind)]
    if fitting:
        earlier = next(i for i, other in enumerate(rules) if fits(other, fitting[0], kinds[fitting[0]]))
        return f"{start}: {fitting[0]} and others that fit are taken by rules.{earlier} before; move the rule up"
    if rule.match in get_args(Kind):
        return f"{start}: match is a pattern of names; for parameters of that kind write kinds: [{rule.match}]"
    close = sorted(kinds, key=lambda name: -_nearness(rule, name, kinds[name]))[:3]
    shown = ", ".join(f"{name} ({kinds[name]})" for name in close)
    return f"{start} of this model; nearest: {shown}; correct or remove the rule"


def _nearness(rule: Rule, name: str, kind: Kind) -> float:
    """How much of a rule holds, in conditions; a pattern counts by the likeness of its text to the name."""
    patterns = [pattern for pattern in (rule.match, rule.regex) if pattern is not None]
    return (kind in rule.kinds) + sum(SequenceMatcher(None, pattern, name).ratio() for pattern in patterns)
