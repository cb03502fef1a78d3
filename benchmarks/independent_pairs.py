"""Which optimizer of lowland is compared with which implementation by others, in settings where they should agree."""

from dataclasses import dataclass
from typing import Any

import independent_parts as parts
import independent_trainings as by
from independent_parts import PERIOD, SNAPSHOTS, STRENGTH, TURNED
from independent_trainings import EVERY, GSAM_ALPHA, HALF_LIFE, OUTER, RHO, Arguments

from lowland.optim import EMA, SAM, DiLoCo, Lookbehind, Nowcast, WeightSharing

NONE = ("critical_momenta", "critical_gradients")
"""Methods that no package implements."""


@dataclass(frozen=True)
class Pair:
    """A method and an implementation by others."""

    method: str
    """Its name in recipes; behind it the variant."""
    package: str
    """As pip knows it."""
    what: str
    """The class or function in it."""
    ours: by.Ours
    theirs: by.Theirs
    settings: str = ""
    """How conventions that differ are made to give the same."""
    differs: str = ""
    """Why the two are not the same method."""

    @property
    def module(self) -> str:
        """Where `what` lies."""
        return _MODULES.get(self.package, self.package.replace("-", "_"))


_MODULES = {
    "muon-optimizer": "muon",
    "sam-pytorch": "sam",
    "scikit-learn": "sklearn.isotonic",
    "torch": "torch.optim",
    "transformers": "transformers.optimization",
}
_MANY = "pytorch-optimizer"

_ADAM: Arguments = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
_MIX: Arguments = {**_ADAM, "betas": (0.9, 0.99, 0.999), "alpha": 0.0, "weight_decouple": True}
_SGD: Arguments = {"lr": 0.05, "weight_decay": 0.01}
_LION: Arguments = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
_FREE_ADAM: Arguments = {"lr": 1e-2, "weight_decay": 0.1}
_FREE_SGD: Arguments = {"lr": 0.5, "weight_decay": 0.01}
_FACTOR: Arguments = {"lr": 1e-2, "eps": (1e-30, 1e-3)}
_MUON: Arguments = {"matrices": True, "lr": 2e-2, "momentum": 0.95, "weight_decay": 0.1}
_SOAP: Arguments = {"lr": 1e-2, "weight_decay": 0.1, "precondition_frequency": 5}

_TORQUE = "multiplies normalised momentum and gradient element by element; the paper has their cosine"
_ROUNDING = "Newton-Schulz in bf16, which the two round in different places"
_AVERAGED = "weights and their average"


def _muon(change: Any) -> tuple[by.Ours, by.Theirs]:
    return change(by.ours("muon", **_MUON)), change(by.theirs("SingleDeviceMuon", **_MUON))


PAIRS = (
    Pair(
        "adamw",
        _MANY,
        "AdEMAMix",
        by.ours("adamw", **_ADAM),
        by.theirs("AdEMAMix", **_MIX),
        "alpha 0: no second average",
    ),
    Pair(
        "sgd",
        "torch-optimizer",
        "AggMo",
        by.ours("sgd", **_SGD, momentum=0.9),
        by.theirs("AggMo", **_SGD, betas=(0.9,)),
        "one velocity",
    ),
    Pair("lion", "lion-pytorch", "Lion", by.ours("lion", **_LION), by.theirs("Lion", **_LION)),
    Pair("lion", _MANY, "Lion", by.ours("lion", **_LION), by.theirs("Lion", **_LION)),
    Pair(
        "schedule_free_adamw",
        "schedulefree",
        "AdamWScheduleFree",
        by.ours("schedule_free_adamw", **_FREE_ADAM),
        by.schedule_free("AdamWScheduleFree", **_FREE_ADAM),
        _AVERAGED,
    ),
    Pair(
        "schedule_free_sgd",
        "schedulefree",
        "SGDScheduleFree",
        by.ours("schedule_free_sgd", **_FREE_SGD),
        by.schedule_free("SGDScheduleFree", **_FREE_SGD),
        _AVERAGED,
    ),
    Pair("tam", _MANY, "TAM", by.ours("tam", lr=2e-2), by.theirs("TAM", lr=2e-2), differs=_TORQUE),
    Pair("adatamw", _MANY, "AdaTAM", by.ours("adatamw", lr=2e-3), by.theirs("AdaTAM", lr=2e-3), differs=_TORQUE),
    Pair(
        "adafactor",
        "transformers",
        "Adafactor",
        by.ours("adafactor", **_FACTOR),
        by.theirs("Adafactor", **_FACTOR, relative_step=False, scale_parameter=True),
        "eps 1e-30; the rate is set",
    ),
    Pair(
        "muon",
        "muon-optimizer",
        "SingleDeviceMuon",
        *_muon(by.in_full_precision),
        "no rounding to bf16; large gradients",
    ),
    Pair("muon", "muon-optimizer", "SingleDeviceMuon", *_muon(lambda make: make), differs=_ROUNDING),
    Pair("soap", _MANY, "SOAP", by.ours("soap", **_SOAP), by.theirs("SOAP", **_SOAP), "gradients of full rank"),
    Pair(
        "rotated_adam",
        "torch",
        "AdamW",
        by.ours("rotated_adam", **TURNED, basis="svd", refresh=1000),
        parts.rotated,
        "svd of the first gradient; the weights turned by it",
    ),
    Pair(
        "weight_sharing",
        "scikit-learn",
        "isotonic_regression",
        by.around(WeightSharing, STRENGTH),
        parts.isotonic,
        "of the sorted weights, moved inwards",
    ),
    Pair(
        "nowcast",
        "numpy",
        "polyfit",
        by.around(Nowcast, period=PERIOD, snapshots=SNAPSHOTS, method="fit"),
        parts.polyfit,
        "method fit",
    ),
    Pair("sam", _MANY, "SAM", by.around(SAM, RHO), by.two_passes("SAM", rho=RHO)),
    Pair("sam", "sam-pytorch", "SAM", by.around(SAM, RHO), by.sam_pytorch),
    Pair(
        "sam (ASAM)",
        _MANY,
        "SAM",
        by.around(SAM, 10 * RHO, adaptive="all", eta=0.0),
        by.two_passes("SAM", rho=10 * RHO, adaptive=True),
        "adaptive all, eta 0",
    ),
    Pair("sam (GSAM)", _MANY, "GSAM", by.around(SAM, RHO, gsam_alpha=GSAM_ALPHA), by.gsam, "a constant rho"),
    Pair(
        "sam (F-SAM)",
        _MANY,
        "FriendlySAM",
        by.around(SAM, RHO, fsam_sigma=1.0),
        by.two_passes("FriendlySAM", rho=RHO),
    ),
    Pair(
        "lookbehind", _MANY, "SAM", by.around(Lookbehind, RHO, k=1), by.two_passes("SAM", rho=RHO), "k 1, which is SAM"
    ),
    Pair(
        "diloco",
        _MANY,
        "Lookahead",
        by.around(DiLoCo, every=EVERY, lr=OUTER, momentum=0.0),
        by.lookahead,
        "no outer momentum",
    ),
    Pair(
        "diloco",
        "torch",
        "SGD",
        by.around(DiLoCo, every=EVERY, lr=OUTER, momentum=0.5),
        parts.outer,
        "as the outer optimizer",
    ),
    Pair("ema", "ema-pytorch", "EMA", by.around(EMA, HALF_LIFE), by.ema, "the start taken out of its average"),
)
