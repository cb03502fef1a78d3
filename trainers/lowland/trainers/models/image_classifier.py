"""Image classifiers, as modules whose forward returns a sum of losses."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig

from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.methods.base import Outputs
from lowland.trainers.methods.objective import Objective
from lowland.trainers.models.batch_norm import use_step_batch_norm
from lowland.trainers.models.heads import ETFClassifier
from lowland.trainers.models.resnets import resnet_cifar, wide_resnet
from lowland.trainers.models.units import fit_units
from lowland.trainers.recipe import ImageModelConfig
from lowland.trainers.recipe.image_model import CIFAR_RESNETS, PATCH_SIZE
from lowland.trainers.recipe.image_model import wide_resnet as wide_sizes

PREPROCESSING = "preprocessing.json"
"""File of an exported folder that says how images become the network's input."""
OWN_TYPE = "lowland-image-classifier"
"""`model_type` of exported networks that are not transformers' own."""

_VIT = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
# Width, layers and heads (Dosovitskiy et al., 2021; Touvron et al., 2021).
_CONVNEXT = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
# Blocks and widths of the stages (Liu et al., 2022).


@dataclass(frozen=True)
class ImageInput:
    """What a network sees and tells apart, which the data decide."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


class ImageClassifierLoss(nn.Module):
    """A classifier with its normalisation and its loss.

    Args:
        network: gives logits [B, K] of images [B, C, S, S], or something that has them as `logits`.
        seen: what images are.
        label_smoothing: part of the target that is spread over all classes, in training, in [0, 1).
        channels_last: give the network images with channels last in memory.
        objective: makes of the losses what is differentiated in training; None sums them up.
        features_of: the classifier, where the objective wants what it is given.
    """

    def __init__(
        self,
        network: nn.Module,
        seen: ImageInput,
        *,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        objective: Objective | None = None,
        features_of: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._objective = objective
        self._features: Tensor | None = None
        if features_of is not None:
            features_of.register_forward_pre_hook(self._keep_features)
        self._smoothing, self._channels_last = label_smoothing, channels_last
        # No buffers: they are to stay fp32 whatever the weights become, and an export says them beside the weights.
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (seen.mean, seen.std))

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        groups: Tensor | None = None,
        other_labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        others: Tensor | None = None,
        pixel_weights: Tensor | None = None,
    ) -> Tensor:
        """The sum over images of cross-entropies (nats, fp32); without labels the logits, fp32 [B, K].

        Args:
            images: uint8 [B, C, S, S].
            labels: int64 [B].
            rows: int64 [B], which images of the training set these are; for the objective.
            groups: int64 [B], likewise.
            other_labels: int64 [B], of what is mixed in; None without mixing.
            label_weights: float32 [B] in [0, 1], weight of `labels` then.
            others: uint8 [B, C, S, S], images to blend with; None without MixUp.
            pixel_weights: float32 [B] in [0, 1], weight of `images` then.
        """
        logits = self.logits(self.normalised(images, others, pixel_weights))
        if labels is None:
            return logits
        losses = self._losses(logits, labels)
        if other_labels is not None and label_weights is not None:
            losses = label_weights * losses + (1 - label_weights) * self._losses(logits, other_labels)
        if self._objective is None or not self.training:
            return losses.sum()
        targets = self._targets(labels, logits)
        if other_labels is not None and label_weights is not None:
            weights = label_weights[:, None]
            targets = weights * targets + (1 - weights) * self._targets(other_labels, logits)
            labels = torch.where(label_weights >= 0.5, labels, other_labels)
        return self._objective(Outputs(logits, targets, labels, losses, self._features, groups, rows))

    def _targets(self, labels: Tensor, logits: Tensor) -> Tensor:
        classes = logits.shape[1]
        return functional.one_hot(labels, classes) * (1 - self._smoothing) + self._smoothing / classes

    def _keep_features(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._features = arguments[0]

    def normalised(self, images: Tensor, others: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """What the network sees of bytes, in the type of its weights: [B, C, S, S]."""
        values = images.float() / 255
        if others is not None and weights is not None:
            weight = weights.view(-1, 1, 1, 1)
            values = weight * values + (1 - weight) * (others.float() / 255)
        values = ((values - self._mean) / self._std).to(next(self.network.parameters()).dtype)
        return values.contiguous(memory_format=torch.channels_last) if self._channels_last else values

    def logits(self, seen: Tensor) -> Tensor:
        """The network's logits, fp32 [B, K]."""
        found = self.network(seen)
        logits: Tensor = found if isinstance(found, Tensor) else found.logits
        return logits.float()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "ImageClassifierLoss":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(self._mean).device
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self._smoothing if self.training else 0.0
        return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


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
    if recipe.compile:
        network.forward = torch.compile(network.forward)
    return network


def _initialised(recipe: ImageModelConfig, seen: ImageInput) -> nn.Module:
    if recipe.architecture is not None and (own := own_network(recipe.architecture, seen)) is not None:
        return own
    config = _config(recipe, seen)
    try:
        network: nn.Module = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"model.config: transformers makes no image classifier of it: {error}") from error
    return network


def own_network(architecture: str, seen: ImageInput) -> nn.Module | None:
    """A network of lowland by its name; None if it is transformers'."""
    if architecture in CIFAR_RESNETS:
        depth = int(architecture.removeprefix("resnet").removesuffix("-cifar"))
        return resnet_cifar(depth, channels=seen.channels, classes=len(seen.classes))
    sizes = wide_sizes(architecture)
    return wide_resnet(*sizes, channels=seen.channels, classes=len(seen.classes)) if sizes is not None else None


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
    size = getattr(config, "image_size", seen.size)
    if size != seen.size and config.model_type == "vit":
        raise RecipeError(f"data.size = {seen.size}: the model takes images of {size} x {size}; set data.size: {size}")
    channels = getattr(config, "num_channels", seen.channels)
    if channels != seen.channels:
        raise RecipeError(f"data.channels = {seen.channels}: the model takes {channels}; set data.channels: {channels}")
    if config.num_labels != len(seen.classes):
        raise RecipeError(f"model.config: num_labels is {config.num_labels}, the data have {len(seen.classes)} classes")


def _read(recipe: ImageModelConfig, seen: ImageInput) -> nn.Module:
    if (described := _own_description(recipe)) is not None:
        return _read_own(Path(str(recipe.path)), described, seen)
    config = _pretrained_config(recipe, seen)
    try:
        network: nn.Module = AutoModelForImageClassification.from_pretrained(
            recipe.path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"model.path = {recipe.path}: no image classifier can be read there: {error}") from error
    return network


def _read_config(recipe: ImageModelConfig, seen: ImageInput) -> nn.Module:
    """The network that `_read` gives, with weights that are not its own."""
    if (described := _own_description(recipe)) is not None:
        return _own(Path(str(recipe.path)), described, seen)
    network: nn.Module = AutoModelForImageClassification.from_config(_pretrained_config(recipe, seen))
    return network


def _own_description(recipe: ImageModelConfig) -> dict[str, Any] | None:
    """What a folder that lowland exported says of a network of its own."""
    file = Path(str(recipe.path)) / "config.json"
    described = _json(file) if file.is_file() else {}
    return described if described.get("model_type") == OWN_TYPE else None


def _pretrained_config(recipe: ImageModelConfig, seen: ImageInput) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(recipe.path, **_labels(seen))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"model.path = {recipe.path}: no model configuration can be read there: {error}") from error
    _require_same(config, seen)
    return config


def load_classifier(folder: Path) -> tuple[nn.Module, ImageInput]:
    """An exported classifier, in evaluation mode, and what it sees: the network takes normalised images.

    Args:
        folder: as `save_classifier` wrote it.

    Raises:
        DataError: there is none.
    """
    described, how = _json(folder / "config.json"), _json(folder / PREPROCESSING)
    seen = ImageInput(how["size"], how["channels"], tuple(how["mean"]), tuple(how["std"]), tuple(how["classes"]))
    if described.get("model_type") == OWN_TYPE:
        return _read_own(folder, described, seen).eval(), seen
    network: nn.Module = AutoModelForImageClassification.from_pretrained(folder)
    return network.eval(), seen


def _read_own(folder: Path, described: Mapping[str, Any], seen: ImageInput) -> nn.Module:
    """A network of lowland with its weights; a head for other classes is initialised anew."""
    network = _own(folder, described, seen)
    try:
        weights = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: no weights can be read there: {error}") from error
    own = network.state_dict()
    other_head = {name for name in weights if name.startswith("fc.") and weights[name].shape != own[name].shape}
    differing = [n for n in own if n not in other_head and (n not in weights or weights[n].shape != own[n].shape)]
    if differing:
        raise DataError(
            f"{folder}: {differing[0]} has another shape than images of data.channels = {seen.channels} want"
        )
    network.load_state_dict({**weights, **{name: own[name] for name in other_head}})
    return network


def _own(folder: Path, described: Mapping[str, Any], seen: ImageInput) -> nn.Module:
    network = own_network(str(described.get("architecture")), seen)
    if network is None:
        raise DataError(f"{folder}: the architecture {described.get('architecture')} is not known to this lowland")
    shapes = _shapes(folder)
    fit_units(network, shapes)
    if (vectors := shapes.get("fc.vectors")) is not None:
        network.fc = ETFClassifier(torch.empty(vectors), scale=1.0)
    return network


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of the weights in a folder, by name."""
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: no weights can be read there: {error}") from error


def save_classifier(
    network: nn.Module, recipe: ImageModelConfig, seen: ImageInput, weights: dict[str, Tensor], folder: Path
) -> None:
    """Writes configuration, safetensors and preprocessing: loadable by `load_classifier`, and by transformers'
    AutoModelForImageClassification if the network is one of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = getattr(network, "config", None)
    if isinstance(config, PretrainedConfig):
        config.dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
        config.save_pretrained(folder)
    else:
        described = {"model_type": OWN_TYPE, "architecture": architecture_of(recipe)}
        (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    how = {"size": seen.size, "channels": seen.channels, "mean": seen.mean, "std": seen.std, "classes": seen.classes}
    (folder / PREPROCESSING).write_text(json.dumps(how, indent=2) + "\n", encoding="utf-8")
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in weights.items()}, folder)


def architecture_of(recipe: ImageModelConfig) -> str:
    """The name of an architecture of lowland, from the recipe or from the folder that it starts from."""
    if recipe.architecture is not None:
        return recipe.architecture
    return str(_json(Path(str(recipe.path)) / "config.json")["architecture"])


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return found
