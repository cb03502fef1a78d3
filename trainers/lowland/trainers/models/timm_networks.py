"""Image classifiers of timm, inside transformers' wrapper: it reads and writes the same folders as any other model."""

from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification, PretrainedConfig

from lowland.trainers.errors import RecipeError
from lowland.trainers.models.image_classifier import ImageInput
from lowland.trainers.recipe.image_model import INSTALL_TIMM

TYPE = "timm_wrapper"
"""What transformers calls it."""


def timm_fields(name: str, arguments: dict[str, Any], seen: ImageInput) -> dict[str, Any]:
    """The fields of the wrapper's configuration for a network of timm.

    Args:
        name: timm's.
        arguments: of `timm.create_model`, besides those that the data decide.
        seen: what images are; networks for images of one size are built for this one.

    Raises:
        RecipeError: timm is not installed, or has no such network.
    """
    require_timm(name)
    decided: dict[str, Any] = {"in_chans": seen.channels}
    described = _timm().get_pretrained_cfg(name)
    if described is not None and described.fixed_input_size:
        decided["img_size"] = seen.size
    return {"model_type": TYPE, "architecture": name, "model_args": {**decided, **arguments}}


def require_timm(name: str) -> None:
    """Looks a network up.

    Raises:
        RecipeError: timm is not installed, or has no such network.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models(), n=3))
        hint = f"; nearest: {near}" if near else ""
        raise RecipeError(f"model.architecture = timm/{name}: timm {timm.__version__} has no such network{hint}")
    try:
        timm.get_pretrained_cfg(name)  # unlike the above it looks at the tag
    except RuntimeError as error:
        bare = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{bare}.*"))
        raise RecipeError(
            f"model.architecture = timm/{name}: timm {timm.__version__} has no such tag; give {bare} or one of: {tags}"
        ) from error


def timm_network(config: PretrainedConfig) -> nn.Module:
    """The network with timm's own initial weights, of torch's generator: the wrapper itself draws all layers alike.

    Raises:
        RecipeError: timm refuses the arguments.
    """
    try:
        own = _timm().create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
        network: nn.Module = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise RecipeError(f"model.timm_arguments: timm's {config.architecture} refuses them: {error}") from error
    network.timm_model = own
    return network


def require_timm_images(config: PretrainedConfig, seen: ImageInput) -> None:
    """Of what a pretrained network of timm says of images, all that the data say otherwise.

    Raises:
        RecipeError: the data are of another size or of other channels, or timm is not installed.
    """
    _timm()
    arguments = config.model_args or {}
    described = getattr(config, "pretrained_cfg", None) or {}
    channels, size = arguments.get("in_chans", 3), arguments.get("img_size")
    if size is None and described.get("fixed_input_size"):
        size = described["input_size"][-1]
    if channels != seen.channels:
        raise RecipeError(f"data.channels = {seen.channels}: the model takes {channels}; set data.channels: {channels}")
    if size is not None and size != seen.size:
        raise RecipeError(f"data.size = {seen.size}: the model takes images of {size} x {size}; set data.size: {size}")


def _timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision that is built for another torch raises the second
        raise RecipeError(f"model: a network of timm, which cannot be imported ({error}): {INSTALL_TIMM}") from error
    return timm
