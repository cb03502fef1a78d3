"""Cases that only `scripts/test --full` runs: the same property in circumstances that others meet one by one."""

from typing import Any

import pytest


def full(*values: Any) -> Any:
    """A set of parameters for `pytest.mark.parametrize` that is left out by default."""
    return pytest.param(*values, marks=pytest.mark.full)
