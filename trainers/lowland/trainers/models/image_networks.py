"""The networks of image classifiers: by name, from a configuration, or from a folder."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig

from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.models.batch_norm import use_step_batch_norm
from lowland.trainers.models.image_classifier import ImageInput
from lowland.trainers.models.image_folders import (
    SMALLER,
    bare_network,
    own_description,
    own_network,
    read_own,
    read_smaller,
    smaller_network,
)
from lowland.trainers.models.timm_networks import TYPE as TIMM_TYPE
from lowland.trainers.models.timm_networks import require_timm_images, timm_fields, timm_network
from lowland.trainers.recipe import ImageModelConfig
from lowland.trainers.recipe.image_model import PATCH_SIZE

_VIT = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
# Width, layers and heads (Dosovitskiy et al., 2021; Touvron et al., 2021).
_CONVNEXT = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
# Blocks and widths of the stages (Liu et al., 2022).


def build_image_classifier(recipe: ImageModelConfig, seen: ImageInput, *, dtype: torch.dtype, seed: int) -> nn.Module:
    """The network on the CPU: read from its folder, or initialised alike on every rank.

    Raises:
        DataError: configuration or weights cannot be read, or are of other images.
        RecipeError: the configuration is refused.
    """
    torch.manual_seed(seed)
    network = _read(recipe, seen) if recipe.path is not None else _initialised(recipe, seen)
    use_step_batch_norm(network, synchronised=recipe.batch_norm == "global")
    network = network.to(dtype)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.cuda_graphs:
        # The graphs of a network that this process trained before would keep its memory, as those of trials do.
        torch.compiler.reset()
    if recipe.compile:
        network.forward = torch.compile(network.forward, mode="reduce-overhead" if recipe.cuda_graphs else None)
    return network


def _initialised(recipe: ImageModelConfig, seen: ImageInput) -> nn.Module:
    if recipe.architecture is not None and (own := own_network(recipe.architecture, seen)) is not None:
        return own
    config = _config(recipe, seen)
    if recipe.timm is not None:
        return timm_network(config)
    try:
        network: nn.Module = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"model.config: transformers makes no image classifier of it: {error}") from error
    return network


def classifier_network(recipe: ImageModelConfig, seen: ImageInput) -> nn.Module:
    """The network on torch's meta device, where tensors have shapes and no storage."""
    with torch.device("meta"):
        return _read_config(recipe, seen) if recipe.path is not None else _initialised(recipe, seen)


def classifier_sizes(recipe: ImageModelConfig, seen: ImageInput) -> tuple[int, int]:
    """Parameters of the network, and FLOPs of its forward pass on one image; nothing is allocated."""
    from torch.utils.flop_counter import FlopCounterMode

    network = classifier_network(recipe, seen)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.empty(1, seen.channels, seen.size, seen.size, device="meta"))
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()


def _config(recipe: ImageModelConfig, seen: ImageInput) -> PretrainedConfig:
    """The transformers configuration of a model that is built."""
    if recipe.timm is not None:
        fields = {**_labels(seen), **timm_fields(recipe.timm, recipe.timm_arguments, seen)}
    else:
        fields = {**_said(seen), **(recipe.config or _named_config(recipe, seen))}
    model_type = fields.pop("model_type")
    try:
        config = AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"model.config: {error}") from error
    _require_same(config, seen)
    return config


def _said(seen: ImageInput) -> dict[str, Any]:
    """What the data decide of a configuration."""
    return {"image_size": seen.size, "num_channels": seen.channels, **_labels(seen)}


def _labels(seen: ImageInput) -> dict[str, Any]:
    names = dict(enumerate(seen.classes))
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


def _named_config(recipe: ImageModelConfig, seen: ImageInput) -> dict[str, Any]:
    name, _, size = str(recipe.architecture).partition("-")
    if name == "resnet50":
        return {"model_type": "resnet"}
    if name == "convnext":
        depths, widths = _CONVNEXT[size]
        return {"model_type": "convnext", "depths": list(depths), "hidden_sizes": list(widths)}
    patch_size = recipe.patch_size or PATCH_SIZE
    if seen.size % patch_size:
        raise RecipeError(
            f"model.patch_size = {patch_size}: must divide the images' side, which is {seen.size} (data.size)"
        )
    width, layers, heads = _VIT[size]
    wide = {"hidden_size": width, "intermediate_size": 4 * width}
    deep = {"num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch_size}
    return {"model_type": "vit", **wide, **deep}


def _require_same(config: PretrainedConfig, seen: ImageInput) -> None:
    """Of what a configuration says of images, all that the data say otherwise."""
    if config.model_type == TIMM_TYPE:
        require_timm_images(config, seen)
    size = getattr(config, "image_size", seen.size)
    if size != seen.size and config.model_type == "vit":
        raise RecipeError(f"data.size = {seen.size}: the model takes images of {size} x {size}; set data.size: {size}")
    channels = getattr(config, "num_channels", seen.channels)
    if channels != seen.channels:
        raise RecipeError(f"data.channels = {seen.channels}: the model takes {channels}; set data.channels: {channels}")
    if config.num_labels != len(seen.classes):
        raise RecipeError(f"model.config: num_labels is {config.num_labels}, the data have {len(seen.classes)} classes")


def _read(recipe: ImageModelConfig, seen: ImageInput) -> nn.Module:
    if (described := own_description(recipe)) is not None:
        return read_own(Path(str(recipe.path)), described, seen)
    config = _pretrained_config(recipe, seen)
    if getattr(config, SMALLER, False):
        return read_smaller(Path(str(recipe.path)), config)
    try:
        network: nn.Module = AutoModelForImageClassification.from_pretrained(
            recipe.path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"model.path = {recipe.path}: no image classifier can be read there: {error}") from error
    return network


def _read_config(recipe: ImageModelConfig, seen: ImageInput) -> nn.Module:
    """The network that `_read` gives, with weights that are not its own."""
    if (described := own_description(recipe)) is not None:
        return bare_network(Path(str(recipe.path)), described, seen)
    config = _pretrained_config(recipe, seen)
    if getattr(config, SMALLER, False):
        return smaller_network(Path(str(recipe.path)), config)
    network: nn.Module = AutoModelForImageClassification.from_config(config)
    return network


def _pretrained_config(recipe: ImageModelConfig, seen: ImageInput) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(recipe.path, **_labels(seen), num_labels=len(seen.classes))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"model.path = {recipe.path}: no model configuration can be read there: {error}") from error
    _require_same(config, seen)
    return config
