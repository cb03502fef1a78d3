"""From what a recipe calls its images to where they are on this machine."""

from dataclasses import dataclass

from lowland.trainers.data.images.hub import find_images
from lowland.trainers.recipe import ImageDataConfig

Place = str | tuple[str, ...]
"""Where images are: a path as recipes name it, or Parquet files of this machine."""


@dataclass(frozen=True)
class Places:
    """Where the images of a training are."""

    path: Place
    held_out: Place | None
    """None where held-out images are drawn from `path`."""


def places(config: ImageDataConfig) -> Places:
    """Where the images are, after copying them to this machine's cache if they are on the hub.

    Raises:
        DataError: a data set of the hub cannot be had.
    """
    if not config.on_hub:
        return Places(config.path, config.held_out_path)
    train, held_out = find_images(config.path, config.hub).download()
    return Places(train, config.held_out_path if held_out is None else held_out)
