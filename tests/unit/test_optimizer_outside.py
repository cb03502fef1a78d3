"""Optimizers from outside: imported, built, and let under ZeRO only where they stay exact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.rules import mixed, section
from torch import nn

from lowland.optim import LayoutOptimizer, Whole
from lowland.trainers.errors import RecipeError
from lowland.trainers.optimizers import build_optimizer, parameter_groups
from lowland.trainers.recipe import OptimizerConfig


class Outside(torch.optim.Optimizer):
    """An optimizer of one's own: normalised by the norm of each tensor."""

    def __init__(self, params: Any, lr: float, power: float = 1.0) -> None:
        if power <= 0:
            raise ValueError("power must be positive")
        super().__init__(params, {"lr": lr, "power": power})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves each tensor by lr."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad / p.grad.norm() ** group["power"])


class ByLayout(LayoutOptimizer):
    """One that knows its layout."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})


def custom(**fields: Any) -> OptimizerConfig:
    return section(**{"name": "custom", "lr": 0.1, "weight_decay": 0, "target": f"{__name__}:Outside", **fields})


def built(config: OptimizerConfig, *, in_pieces: bool = False) -> torch.optim.Optimizer:
    return build_optimizer(config, parameter_groups(nn.Linear(3, 2), config), in_pieces=in_pieces)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file under the name by which recipes here ask for it, as a module on the workers' path would be."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Outside.__module__])


def test_an_optimizer_from_outside_is_built_whole_or_as_it_is() -> None:
    whole = built(custom(arguments={"power": 2.0}))
    assert isinstance(whole, Whole)
    assert all(group["power"] == 2.0 and group["lr"] == 0.1 for group in whole.param_groups)
    assert type(built(custom(sees="elements"))) is Outside
    assert type(built(custom(target=f"{__name__}:ByLayout"))) is ByLayout


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "no.such_module:Thing"}, r"no\.such_module:Thing: .*importable on every worker"),
        ({"target": "math:Thing"}, r"optimizer\.target = math:Thing"),
        ({"target": "math:sin"}, "must be a subclass of torch.optim.Optimizer"),
        ({"arguments": {"power": -1.0}}, r"optimizer\.arguments: .*:Outside refuses them: power must be positive"),
        ({"arguments": {"powers": 1.0}}, r"optimizer\.arguments: .*unexpected keyword argument 'powers'"),
        ({"weight_decay": 0.1}, r"optimizer\.weight_decay = 0\.1: .*has no weight decay"),
    ],
)
def test_optimizers_from_outside_that_cannot_be_built(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        built(custom(**fields))


def test_only_what_is_exact_steps_pieces_of_tensors(tmp_path: Path) -> None:
    """At ZeRO 1 to 3: by its layout, whole, by the table, or with a certificate of this very class."""
    certificate = tmp_path / "outside.json"
    target = f"{__name__}:Outside"

    def certified(**values: Any) -> OptimizerConfig:
        certificate.write_text(json.dumps({"target": target, "sees": "elements", **values}))
        return custom(sees="elements", certificate=str(certificate))

    for config in (custom(), custom(target=f"{__name__}:ByLayout"), section(name="adamw", lr=1), certified()):
        built(config, in_pieces=True)
    with pytest.raises(RecipeError, match=r"optimizer\.sees = elements: nothing says .*set optimizer\.sees: tensors"):
        built(custom(sees="elements"), in_pieces=True)
    with pytest.raises(RecipeError, match="its sees is tensors, not elements"):
        built(certified(sees="tensors"), in_pieces=True)
    with pytest.raises(RecipeError, match="its target is other:Class, not"):
        built(certified(target="other:Class"), in_pieces=True)
    with pytest.raises(RecipeError, match="cannot be read"):
        built(custom(sees="elements", certificate=str(tmp_path / "none.json")), in_pieces=True)
    rule = {"match": "*", "optimizer": {"name": "custom", "target": target, "sees": "elements", "weight_decay": 0}}
    with pytest.raises(RecipeError, match=r"optimizer\.sees = elements"):
        built(mixed(rule), in_pieces=True)
