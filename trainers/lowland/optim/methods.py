"""The table of optimizers: what each is called, how it is made, and what it must see of a tensor.

A method is in the conformance suite, in the sharding table of the documentation and in recipes because of its row here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from lowland.optim.critical import CriticalGradients, CriticalMomenta
from lowland.optim.diloco import DiLoCo
from lowland.optim.ema import EMA
from lowland.optim.lion import Lion
from lowland.optim.lookbehind import Lookbehind
from lowland.optim.nowcast import Nowcast
from lowland.optim.rotated import RotatedAdam
from lowland.optim.sam import SAM
from lowland.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from lowland.optim.sgd import SGD
from lowland.optim.soap import SOAP
from lowland.optim.torque import TAM, AdaTAMW
from lowland.optim.weight_sharing import WeightSharing
from lowland.optim.whole import Whole
from lowland.optim.wrapper import Wrapper

__all__ = ["AROUND", "METHODS", "Around", "Method"]

Sees = Literal["elements", "sums", "tensors"]


@dataclass(frozen=True)
class Method:
    """One optimizer.

    `make(params, lr=..., weight_decay=..., **arguments)` builds it; `params` as torch.optim takes them.
    """

    name: str
    make: Callable[..., Optimizer]
    sees: Sees
    """What it must see: single elements (any cut is exact), sums over tensors, or whole tensors."""
    source: str
    """The paper or the library."""
    example: dict[str, Any] = field(default_factory=dict)
    """Arguments besides the defaults with which the suite tries it; `lr` suits a loss of order one."""
    matrices_only: bool = False
    """Whether it refuses tensors that are not matrices."""


@dataclass(frozen=True)
class Around:
    """Something that is put around any optimizer: `make(base, **arguments)`; a recipe has a section of its name."""

    name: str
    make: Callable[..., Wrapper]
    source: str
    example: dict[str, Any] = field(default_factory=dict)
    """Arguments with which the suite tries it."""


def _whole(optimizer: Callable[..., Optimizer], **fixed: Any) -> Callable[..., Whole]:
    def make(params: Iterable[Any], **arguments: Any) -> Whole:
        return Whole(params, lambda groups: optimizer(groups, **fixed, **arguments))

    return make


def _fused(optimizer: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    def make(params: Iterable[Any], **arguments: Any) -> Optimizer:
        return optimizer(params, fused=True, **arguments)

    return make


_ROWS = (
    Method("adamw", _fused(torch.optim.AdamW), "elements", "torch; Loshchilov and Hutter, 2019", {"lr": 1e-2}),
    Method("sgd", SGD, "elements", "torch", {"lr": 1e-2, "momentum": 0.9}),
    Method("lion", Lion, "elements", "Chen et al., arXiv 2302.06675", {"lr": 1e-2}),
    Method("schedule_free_adamw", ScheduleFreeAdamW, "elements", "Defazio et al., arXiv 2405.15682", {"lr": 1e-1}),
    Method("schedule_free_sgd", ScheduleFreeSGD, "elements", "Defazio et al., arXiv 2405.15682", {"lr": 1e-1}),
    Method("tam", TAM, "sums", "Malviya et al., arXiv 2412.18790", {"lr": 1e-2}),
    Method("adatamw", AdaTAMW, "sums", "Malviya et al., arXiv 2412.18790", {"lr": 2e-3}),
    Method(
        "critical_momenta",
        CriticalMomenta,
        "sums",
        "Malviya et al., arXiv 2307.09638",
        {"lr": 3e-2, "variant": "rmsprop"},
    ),
    Method(
        "critical_gradients",
        CriticalGradients,
        "sums",
        "McRae et al., arXiv 2106.10708",
        {"lr": 2e-3, "variant": "sgd"},
    ),
    Method("adafactor", _whole(torch.optim.Adafactor), "tensors", "torch; Shazeer and Stern, 2018", {"lr": 1e-2}),
    Method(
        "muon",
        _whole(torch.optim.Muon),
        "tensors",
        "torch; Jordan et al., 2024",
        {"lr": 4e-2, "adjust_lr_fn": "match_rms_adamw"},
        matrices_only=True,
    ),
    Method("soap", _whole(SOAP), "tensors", "Vyas et al., arXiv 2409.11321", {"lr": 1e-2, "precondition_frequency": 2}),
    Method("rotated_adam", _whole(RotatedAdam), "tensors", "Zhang, Maes et al., arXiv 2410.19964", {"lr": 1e-2}),
)
METHODS = {method.name: method for method in _ROWS}

_AROUND: tuple[Around, ...] = (
    Around("weight_sharing", WeightSharing, "Shakerinava et al., arXiv 2311.03096", {"strength": 1e-2}),
    Around("nowcast", Nowcast, "Knyazev et al., arXiv 2409.04434 (protocol)", {"period": 4, "snapshots": 2}),
    Around("sam", SAM, "Foret et al., arXiv 2010.01412; Kwon et al., arXiv 2102.11600", {"rho": 0.05}),
    Around("lookbehind", Lookbehind, "Mordido et al., arXiv 2307.16704", {"rho": 0.05, "k": 2}),
    Around(
        "diloco",
        DiLoCo,
        "Douillard et al., arXiv 2311.08105; Charles et al., arXiv 2503.09799",
        {"every": 3, "momentum": 0.5},
    ),
    Around("ema", EMA, "Busbridge et al., arXiv 2307.13813 (rule)", {"half_life": 5.0}),
)
AROUND = {around.name: around for around in _AROUND}
"""In the order in which they are put around an optimizer, the innermost first."""
