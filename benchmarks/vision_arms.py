"""What the trainings of `vision_quality.py` are: recipes, one for each arm."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from common import ROOT

from lowland.trainers.recipe import ImageClassificationConfig

Sections = Mapping[str, Any]
RECIPE = ROOT / "recipes" / "cifar10-resnet18-fast.yaml"
"""What every arm changes something of."""
RATE, DECAY = 0.4, 5e-4
"""Learning rate and weight decay of that recipe."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    task: str
    """`optimizers`, `noise` or `pruning`."""
    base: str | None = None
    """The arm of the same task that it is compared with."""
    optimizer: Sections = field(default_factory=dict)
    """Changes of the recipe's optimizer."""
    methods: tuple[Sections, ...] = ()
    gradients: int = 1
    """Gradient evaluations per step; the training has so many times fewer epochs."""
    every_epoch: bool = False
    """Whether each epoch is evaluated, or only the end."""
    by_hand: bool = False
    """Whether the loop of plain torch trains it."""
    plain_labels: bool = False
    """Whether labels are not smoothed."""


NOISE: Sections = {"name": "label_noise", "kind": "symmetric", "rate": 0.5, "own_too": True}
# TAM takes in about half of each gradient and its decay is decoupled: twice the rate and 10 / 2 times the decay of SGD.
TAM: Sections = {"name": "tam", "lr": 2 * RATE, "momentum": 0.9, "weight_decay": 5 * DECAY}
ARMS = {
    "sgd": Arm("optimizers"),
    "plain torch": Arm("optimizers", "sgd", by_hand=True),
    "tam": Arm("optimizers", "sgd", TAM),
    "sam": Arm("optimizers", "sgd", {"sam": {"rho": 0.1}}, gradients=2),
    "asam": Arm("optimizers", "sgd", {"sam": {"rho": 1.0, "adaptive": "all"}}, gradients=2),
    "lookbehind": Arm("optimizers", "sgd", {"lookbehind": {"rho": 0.1, "k": 2}}, gradients=3),
    "cross-entropy": Arm("noise", methods=(NOISE,), every_epoch=True, plain_labels=True),
    "dense": Arm("pruning"),
    "magnitude": Arm(
        "pruning",
        "dense",
        methods=(
            {"name": "magnitude_pruning", "sparsity": 0.8, "rounds": 3, "dense": "40%", "rewind": "learning_rate"},
        ),
    ),
    **{
        f"demp {strength:g}": Arm(
            "pruning", "dense", methods=({"name": "demp", "strength": strength, "every": "2 epochs"},)
        )
        for strength in (0.01, 0.03)
    },
}


def recipe(arm: Arm, seed: int, images: Path, epochs: float, changes: Sections) -> ImageClassificationConfig:
    """An arm's training.

    Args:
        arm: how.
        seed: of the training.
        images: folder with train.parquet and test.parquet.
        epochs: passes over the data, forward and backward.
        changes: fields of sections to change in all arms, by section.
    """
    sections = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    sections = {name: value for name, value in sections.items() if name in ImageClassificationConfig.model_fields}
    # An optimizer of another name has nothing of the recipe's.
    optimizer = dict(arm.optimizer) if "name" in arm.optimizer else {**sections["optimizer"], **arm.optimizer}
    length = epochs / arm.gradients
    own: dict[str, Any] = {
        "data": {"path": str(images / "train.parquet"), "held_out_path": str(images / "test.parquet")},
        "augmentation": {"label_smoothing": 0.0} if arm.plain_labels else {},
        "evaluation": {"every": "1 epochs" if arm.every_epoch else None, "pictures": False},
        "checkpoints": {"every": None, "export": False},
    }
    for section in (own, changes):
        sections |= {name: {**sections.get(name, {}), **value} for name, value in section.items()}
    rest = {"optimizer": optimizer, "methods": list(arm.methods), "seed": seed, "length": f"{length!r} epochs"}
    return ImageClassificationConfig.model_validate(sections | rest)
