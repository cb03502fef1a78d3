"""What recipes name by where it can be imported from."""

import importlib
from typing import Any

from lowland.trainers.errors import RecipeError


def imported(target: str, field: str) -> Any:
    """What `package.module:Name` names.

    Args:
        target: so written.
        field: the recipe's, for the message.

    Raises:
        RecipeError: it cannot be imported.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"{field} = {target}: {error}; it must be importable on every worker, so install its package there or "
            "set PYTHONPATH"
        ) from error
