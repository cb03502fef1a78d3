"""Hugging Face's hub in a recipe: which texts name something there, and which part of a data set is meant."""

import re
from pathlib import Path

from lowland.trainers.recipe.section import Section

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_hub_id(path: str) -> bool:
    """Whether a path is taken for a hub id: written `name` or `owner/name`, and no such file or folder is here."""
    return is_written_as_hub_id(path) and not Path(path).exists()


def is_written_as_hub_id(path: str) -> bool:
    """Whether a text could be a hub id."""
    return _ID.fullmatch(path) is not None and not path.startswith(".")


class HubDataConfig(Section):
    """Which part of a data set of the hub is meant."""

    config: str | None = None
    """Configuration (subset); null takes the only one, or the default one."""
    split: str = "train"
    """Split to train on."""
    held_out_split: str | None = None
    """Split to evaluate on; null draws the held-out images from `split`."""
    revision: str | None = None
    """Branch, tag or commit; null takes the newest. A run keeps the commit it began with until another is named."""
