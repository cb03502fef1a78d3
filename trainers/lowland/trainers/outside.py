"""Optimizers from outside: imported, built, and let under ZeRO only where they stay exact."""

import json
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lowland.optim import LayoutOptimizer
from lowland.optim.methods import METHODS
from lowland.optim.whole import Whole
from lowland.trainers.errors import RecipeError
from lowland.trainers.imported import imported
from lowland.trainers.recipe import PlainOptimizer
from lowland.trainers.recipe.optimizers import CustomConfig


def build_custom(config: CustomConfig, params: list[dict[str, Any]]) -> Optimizer:
    """The optimizer, through `Whole` if it sees whole tensors.

    Raises:
        RecipeError: it cannot be imported, is no optimizer, refuses its arguments, or knows no weight decay.
    """
    target = _optimizer(config.target)

    def make(groups: list[dict[str, Any]]) -> Optimizer:
        made: Optimizer = target(groups, lr=config.lr, **config.arguments)
        return made

    as_it_is = config.sees == "elements" or issubclass(target, LayoutOptimizer)
    try:
        optimizer = make(params) if as_it_is else Whole(params, make)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"optimizer.arguments: {config.target} refuses them: {error}") from error
    if config.weight_decay and "weight_decay" not in optimizer.defaults:
        raise RecipeError(
            f"optimizer.weight_decay = {config.weight_decay}: {config.target} has no weight decay, which would go "
            "unseen; set it to 0"
        )
    return optimizer


def _optimizer(target: str) -> type[Any]:
    found = imported(target, "optimizer.target")
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise RecipeError(f"optimizer.target = {target}: must be a subclass of torch.optim.Optimizer")
    return found


def require_exact(config: PlainOptimizer, optimizer: Optimizer) -> None:
    """Lets an optimizer step flat pieces of tensors only if that is what it would do to whole ones.

    So are those that know a layout (sums over tensors, or whole tensors through `Whole`), those that the
    table says see single elements, and those from outside with a certificate.

    Raises:
        RecipeError: nothing says so of this one.
    """
    if isinstance(optimizer, LayoutOptimizer):
        return
    if isinstance(config, CustomConfig):
        if config.certificate is None:
            raise RecipeError(
                f"optimizer.sees = elements: nothing says that {config.target} sees single elements only, and at "
                "sharding.stage 1 to 3 it would get pieces of tensors; set optimizer.sees: tensors, or give the file "
                "that `lowland optcheck` writes as optimizer.certificate, or set sharding.stage: 0"
            )
        _require_certificate(config.target, config.certificate)
    elif METHODS[config.name].sees != "elements":
        raise RecipeError(f"optimizer.name = {config.name}: {type(optimizer).__name__} does not know its layout")


def _require_certificate(target: str, path: str) -> None:
    """A certificate is a JSON file whose `target` is the class and whose `sees` is `elements`."""
    place = f"optimizer.certificate = {path}"
    try:
        certificate = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{place}: cannot be read: {error}; write it with `lowland optcheck {target}`") from error
    for key, needed in (("target", target), ("sees", "elements")):
        found = certificate.get(key) if isinstance(certificate, dict) else None
        if found != needed:
            raise RecipeError(
                f"{place}: its {key} is {found}, not {needed}: check the optimizer anew with `lowland optcheck "
                f"{target}`, or set optimizer.sees: tensors"
            )
