"""What a parameter's name says: which recipe field it drives, and on which scale.

optimizer.lr                    the field itself
1 - optimizer.betas.1           its distance to one, for decays and momenta
log2 batch.accumulation         its binary logarithm, for powers of two
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

PATH = r"[A-Za-z_]\w*(\.\w+)*"
NAMES = "a recipe field's dotted path, `1 - path` or `log2 path`; of a branch also any name without dots"
Path = Annotated[str, Field(pattern=rf"^{PATH}$")]
KeyText = Annotated[str, Field(pattern=rf"^(1 - |log2 )?{PATH}$")]

_KEY = re.compile(rf"(1 - |log2 )?({PATH})")


@dataclass(frozen=True)
class Key:
    """A name, taken apart."""

    path: str
    scale: str
    """What stands before the path; empty for the field itself."""

    @classmethod
    def parse(cls, text: str) -> "Key":
        """Takes a name apart.

        Raises:
            ValueError: it is none.
        """
        match = _KEY.fullmatch(text)
        if match is None:
            raise ValueError(f"'{text}' must be {NAMES}")
        return cls(match[2], match[1] or "")

    def field_value(self, searched: float) -> float:
        """What the field becomes when the search proposes a number; whole if the number is and it can be."""
        match self.scale:
            case "1 - ":
                return 1 - searched
            case "log2 ":
                return 2**searched
            case _:
                return searched

    def searched_value(self, field: float) -> float | None:
        """The inverse; None where there is none."""
        match self.scale:
            case "1 - ":
                # Without the noise of the subtraction: 1 - 0.95 would be 0.050000000000000044.
                return float(f"{1 - field:.12g}")
            case "log2 ":
                return math.log2(field) if field > 0 else None
            case _:
                return field
