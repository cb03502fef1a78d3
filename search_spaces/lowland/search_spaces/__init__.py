"""What may be tuned, as data: spaces in YAML, and the frozen classes that they are read into."""

from lowland.search_spaces.constraints import Constraint
from lowland.search_spaces.keys import NAMES, Key
from lowland.search_spaces.parameters import Branch, Choice, Fixed, FloatRange, IntegerRange, Parameter, Unbounded
from lowland.search_spaces.part import Value
from lowland.search_spaces.priors import Prior
from lowland.search_spaces.shipped import shipped
from lowland.search_spaces.space import Entry, Space
from lowland.search_spaces.transfer import Family, Setting, transfer

__all__ = [
    "NAMES",
    "Branch",
    "Choice",
    "Constraint",
    "Entry",
    "Family",
    "Fixed",
    "FloatRange",
    "IntegerRange",
    "Key",
    "Parameter",
    "Prior",
    "Setting",
    "Space",
    "Unbounded",
    "Value",
    "shipped",
    "transfer",
]
