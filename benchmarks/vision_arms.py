"""What the trainings of `vision_quality.py` are: recipes, one for each arm."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from common import ROOT

from lowland.trainers.recipe import ImageClassificationConfig

Sections = Mapping[str, Any]
FAST, NOISY, SPLIT = "cifar10-resnet18-fast", "cifar10-noisy-labels", "cifar10-noisy-cross-split"
"""Recipes that are shipped."""
RATE, DECAY = 0.4, 5e-4
"""Learning rate and weight decay of the first."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    task: str
    """`optimizers`, `noise` or `pruning`."""
    base: str | None = None
    """The arm that it is compared with."""
    recipe: str = FAST
    optimizer: Sections = field(default_factory=dict)
    """Changes of the recipe's optimizer."""
    augmentation: Sections = field(default_factory=dict)
    """Changes of the recipe's augmentation."""
    methods: tuple[Sections, ...] = ()
    """Further methods."""
    gradients: int = 1
    """Gradient evaluations per step; the training has so many times fewer epochs."""
    every_epoch: bool = False
    """Whether each epoch is evaluated, or only the end."""
    by_hand: bool = False
    """Whether the loop of plain torch trains it."""


# TAM takes in about half of each gradient and its decay is decoupled: twice the rate and 10 / 2 times the decay of SGD.
TAM: Sections = {"name": "tam", "lr": 2 * RATE, "momentum": 0.9, "weight_decay": 5 * DECAY}
MAGNITUDE: Sections = {
    "name": "magnitude_pruning",
    "sparsity": 0.8,
    "rounds": 3,
    "dense": "40%",
    "rewind": "learning_rate",
}
# The same schedule and share; as Li et al. (2017), of each layer.
UNITS: Sections = {**MAGNITUDE, "structure": "units", "scope": "tensor"}
ARMS = {
    "sgd": Arm("optimizers"),
    "plain torch": Arm("optimizers", "sgd", by_hand=True),
    "tam": Arm("optimizers", "sgd", optimizer=TAM),
    "sam": Arm("optimizers", "sgd", optimizer={"sam": {"rho": 0.1}}, gradients=2),
    "asam": Arm("optimizers", "sgd", optimizer={"sam": {"rho": 1.0, "adaptive": "all"}}, gradients=2),
    "lookbehind": Arm("optimizers", "sgd", optimizer={"lookbehind": {"rho": 0.1, "k": 2}}, gradients=3),
    "cross-entropy": Arm("noise", recipe=NOISY, every_epoch=True),
    "cross_split": Arm("noise", "cross-entropy", SPLIT, every_epoch=True),
    # What CrossSplit's augmentation does by itself.
    "cross-entropy, RandAugment": Arm(
        "noise", "cross-entropy", NOISY, augmentation={"randaugment": {}}, every_epoch=True
    ),
    "magnitude": Arm("pruning", "sgd", methods=(MAGNITUDE,)),
    "magnitude units": Arm("pruning", "sgd", methods=(UNITS,)),
    "demp 0.001": Arm("pruning", "sgd", methods=({"name": "demp", "strength": 0.001, "every": "2 epochs"},)),
    "demp 0.002": Arm("pruning", "sgd", methods=({"name": "demp", "strength": 0.002, "every": "2 epochs"},)),
}


def recipe(arm: Arm, seed: int, images: Path, epochs: float | None, changes: Sections) -> ImageClassificationConfig:
    """An arm's training.

    Args:
        arm: how.
        seed: of the training.
        images: folder with train.parquet and test.parquet.
        epochs: passes over the data, forward and backward, instead of the recipe's own; what its methods do at epochs
            is moved alike.
        changes: fields of sections to change in all arms, by section.
    """
    sections = yaml.safe_load((ROOT / "recipes" / f"{arm.recipe}.yaml").read_text(encoding="utf-8"))
    sections = {name: value for name, value in sections.items() if name in ImageClassificationConfig.model_fields}
    own = float(sections["length"].removesuffix(" epochs"))
    # An optimizer of another name has nothing of the recipe's.
    optimizer = dict(arm.optimizer) if "name" in arm.optimizer else {**sections["optimizer"], **arm.optimizer}
    ours: dict[str, Any] = {
        "data": {"path": str(images / "train.parquet"), "held_out_path": str(images / "test.parquet")},
        "augmentation": arm.augmentation,
        "evaluation": {"every": "1 epochs" if arm.every_epoch else None, "pictures": False},
        "checkpoints": {"every": None, "export": False},
    }
    for section in (ours, changes):
        sections |= {name: {**sections.get(name, {}), **value} for name, value in section.items()}
    methods = [*sections.get("methods", ()), *arm.methods]
    rest = {
        "optimizer": optimizer,
        "methods": methods if epochs is None else _scaled(methods, epochs / own),
        "length": f"{(epochs or own) / arm.gradients!r} epochs",
        "seed": seed,
    }
    return ImageClassificationConfig.model_validate(sections | rest)


def _scaled(value: Any, factor: float) -> Any:
    """The same with all amounts in epochs multiplied."""
    if isinstance(value, Mapping):
        return {key: _scaled(each, factor) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_scaled(each, factor) for each in value]
    if isinstance(value, str) and value.endswith(" epochs"):
        return f"{float(value.removesuffix(' epochs')) * factor!r} epochs"
    return value
