"""Folders of exported image classifiers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig

from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.models.heads import ETFClassifier
from lowland.trainers.models.image_classifier import ImageInput
from lowland.trainers.models.network_pair import NetworkPair
from lowland.trainers.models.resnets import resnet_cifar, wide_resnet
from lowland.trainers.models.units import fit_units
from lowland.trainers.recipe import ImageModelConfig
from lowland.trainers.recipe.image_model import CIFAR_RESNETS
from lowland.trainers.recipe.image_model import wide_resnet as wide_sizes

SMALLER = "lowland_smaller"
"""Field of the configuration of a network of transformers that units were taken out of."""
PREPROCESSING = "preprocessing.json"
"""File of an exported folder that says how images become the network's input."""
OWN_TYPE = "lowland-image-classifier"
"""`model_type` of exported networks that are not transformers' own."""
PAIR_TYPE = "lowland-image-classifier-pair"
"""`model_type` of two networks whose mean prediction counts."""
PAIR_FOLDERS = ("first", "second")
"""Where each of them is."""


def own_network(architecture: str, seen: ImageInput) -> nn.Module | None:
    """A network of lowland by its name; None if it is transformers'."""
    if architecture in CIFAR_RESNETS:
        depth = int(architecture.removeprefix("resnet").removesuffix("-cifar"))
        return resnet_cifar(depth, channels=seen.channels, classes=len(seen.classes))
    sizes = wide_sizes(architecture)
    return wide_resnet(*sizes, channels=seen.channels, classes=len(seen.classes)) if sizes is not None else None


def own_description(recipe: ImageModelConfig) -> dict[str, Any] | None:
    """What a folder that lowland exported says of a network of its own.

    Raises:
        RecipeError: it holds two networks.
    """
    file = Path(str(recipe.path)) / "config.json"
    described = _json(file) if file.is_file() else {}
    if described.get("model_type") == PAIR_TYPE:
        raise RecipeError(
            f"model.path = {recipe.path}: holds the two networks of cross_split; name one of them: "
            + " or ".join(str(Path(str(recipe.path)) / name) for name in PAIR_FOLDERS)
        )
    return described if described.get("model_type") == OWN_TYPE else None


def load_classifier(folder: Path) -> tuple[nn.Module, ImageInput]:
    """An exported classifier, in evaluation mode, and what it sees: the network takes normalised images.

    Args:
        folder: as `save_classifier` wrote it.

    Raises:
        DataError: there is none.
    """
    described, how = _json(folder / "config.json"), _json(folder / PREPROCESSING)
    seen = ImageInput(how["size"], how["channels"], tuple(how["mean"]), tuple(how["std"]), tuple(how["classes"]))
    if described.get("model_type") == PAIR_TYPE:
        first, second = (load_classifier(folder / name)[0] for name in PAIR_FOLDERS)
        return NetworkPair(first, second).eval(), seen
    if described.get("model_type") == OWN_TYPE:
        return read_own(folder, described, seen).eval(), seen
    if described.get(SMALLER):
        return read_smaller(folder, AutoConfig.from_pretrained(folder)).eval(), seen
    network: nn.Module = AutoModelForImageClassification.from_pretrained(folder)
    return network.eval(), seen


def smaller_network(folder: Path, config: PretrainedConfig) -> nn.Module:
    """A network of transformers without what was taken out of a folder's, with weights that are not its own."""
    network: nn.Module = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    fit_units(network, _shapes(folder))
    return network


def read_smaller(folder: Path, config: PretrainedConfig) -> nn.Module:
    """The same with its weights; a head for another number of classes is initialised anew."""
    network = smaller_network(folder, config)
    own, weights = network.state_dict(), load_file(folder / "model.safetensors")
    differing = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    if other := next((name for name in differing if not name.startswith("classifier.")), None):
        raise DataError(f"{folder}: {other} is not as config.json there says; export the network again")
    network.load_state_dict(weights | {name: own[name] for name in differing})
    return network


def read_own(folder: Path, described: Mapping[str, Any], seen: ImageInput) -> nn.Module:
    """A network of lowland with its weights; a head for other classes, or in another order, is initialised anew."""
    network = bare_network(folder, described, seen)
    try:
        weights = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: no weights can be read there: {error}") from error
    own = network.state_dict()
    if not _same_classes(folder, seen):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
        weights |= {name: tensor for name, tensor in own.items() if name.startswith("fc.")}
    differing = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    if differing:
        raise DataError(
            f"{folder}: {differing[0]} has another shape than images of data.channels = {seen.channels} want"
        )
    network.load_state_dict(weights)
    return network


def bare_network(folder: Path, described: Mapping[str, Any], seen: ImageInput) -> nn.Module:
    """The network of a folder, with the shapes of its weights and not their values."""
    network = own_network(str(described.get("architecture")), seen)
    if network is None:
        raise DataError(f"{folder}: the architecture {described.get('architecture')} is not known to this lowland")
    shapes = _shapes(folder)
    fit_units(network, shapes)
    if (vectors := shapes.get("fc.vectors")) is not None and _same_classes(folder, seen):
        network.fc = ETFClassifier(torch.empty(vectors), scale=1.0)
    return network


def _same_classes(folder: Path, seen: ImageInput) -> bool:
    """Whether the classes of a folder's network are those of the data, in their order."""
    return tuple(_json(folder / PREPROCESSING)["classes"]) == seen.classes


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
    AutoModelForImageClassification if the network is one of its own and whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = getattr(network, "config", None)
    if isinstance(config, PretrainedConfig):
        whole = network.state_dict()
        if any(tensor.shape != whole[name].shape for name, tensor in weights.items()):
            setattr(config, SMALLER, True)
        config.dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
        config.save_pretrained(folder)
    else:
        described = {"model_type": OWN_TYPE, "architecture": architecture_of(recipe)}
        (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    _save_preprocessing(seen, folder)
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in weights.items()}, folder)


def save_pair(
    pair: NetworkPair, recipe: ImageModelConfig, seen: ImageInput, weights: dict[str, Tensor], folder: Path
) -> None:
    """Writes both networks as `save_classifier` does, in the folders `first` and `second`, and what they are together.

    Args:
        pair: the networks.
        recipe: of both.
        seen: what images are.
        weights: of the pair.
        folder: where; `load_classifier` reads it as a pair, and each of its folders as a network.
    """
    for name, network in zip(PAIR_FOLDERS, (pair.first, pair.second), strict=True):
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        save_classifier(network, recipe, seen, own, folder / name)
    described = {"model_type": PAIR_TYPE, "networks": PAIR_FOLDERS}
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    _save_preprocessing(seen, folder)


def _save_preprocessing(seen: ImageInput, folder: Path) -> None:
    how = {"size": seen.size, "channels": seen.channels, "mean": seen.mean, "std": seen.std, "classes": seen.classes}
    (folder / PREPROCESSING).write_text(json.dumps(how, indent=2) + "\n", encoding="utf-8")


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
