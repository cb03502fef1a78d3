"""Where to start the search of a learning rate, from one that is known for AdamW or for SGD with momentum.

Rules compare the size of a steady-state update, between two extremes of what gradients do:

    constant       each step has the same gradient g
    uncorrelated   gradients are independent with mean 0 and variance sigma^2

With decay beta of the (first) moment, and the rate eta in front:

    SGD with momentum   m <- beta m + g                 constant: g / (1 - beta)      uncorrelated, root mean square:
                                                                                      sigma / sqrt(1 - beta^2)
    AdamW               m / sqrt(v), both averages      constant: 1                   r = sqrt((1 - beta) / (1 + beta))

A suggestion makes both methods' updates equal in one of the cases or between them; its range spans what the cases, or
the authors' own searches, differ by.  It is where a search starts, not where it ends.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lowland.optim.base import require
from lowland.optim.methods import AROUND, METHODS

__all__ = ["Known", "Suggestion", "suggest_lr"]

Known = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Suggestion:
    """A learning rate to start from."""

    lr: float
    low: float
    """Least rate to search."""
    high: float
    """Largest rate to search."""
    reason: str
    """What the rule equates, and what else should change."""


@dataclass(frozen=True)
class _Given:
    """What rules may depend on."""

    beta: float
    cosine: float
    weight_rms: float

    @property
    def noise(self) -> float:
        """AdamW's update for uncorrelated gradients, relative to that for constant ones."""
        return math.sqrt((1 - self.beta) / (1 + self.beta))


_Rule = Callable[[_Given], tuple[float, float, float, str]]
"""Factors on the known rate: suggestion, least, largest; and why."""


def suggest_lr(
    method: str, known: Known, lr: float, *, beta: float = 0.9, cosine: float = 0.0, weight_rms: float = 0.02
) -> Suggestion:
    """A learning rate for a method, from one that is known for another on the same model, data and batch.

    Args:
        method: a name of `lowland.optim.methods`; what is put around an optimizer leaves its rate as it is.
        known: for which optimizer the rate is known.
        lr: that rate, > 0.
        beta: momentum of SGD, or beta1 of AdamW, and of the method, in [0, 1).
        cosine: the smoothed cosine s that Torque-Aware Momentum will see, in [-1, 1]; recorded as `cosine`.  0 is that
            of uncorrelated gradients.
        weight_rms: root mean square of weights, > 0; for Adafactor, whose steps are relative to it.

    Raises:
        ValueError: an argument is outside its range, or no rule leads from the known optimizer to the method.
    """
    require(lr > 0, f"lr > 0 must hold, got {lr}")
    require(0 <= beta < 1, f"beta in [0, 1) must hold, got {beta}")
    require(-1 <= cosine <= 1, f"cosine in [-1, 1] must hold, got {cosine}")
    require(weight_rms > 0, f"weight_rms > 0 must hold, got {weight_rms}")
    require(method in METHODS or method in AROUND, f"method must be one of {', '.join([*METHODS, *AROUND])}")
    rule = _unchanged if method in AROUND else _RULES[known].get(method)
    if rule is None:
        other = "sgd" if known == "adamw" else "adamw"
        raise ValueError(
            f"no rule leads from {known} to {method}: one divides by the size of gradients and the other does not; "
            f"give a rate that is known for {other}"
        )
    factor, low, high, reason = rule(_Given(beta, cosine, weight_rms))
    return Suggestion(lr * factor, lr * low, lr * high, reason)


def _same(_: _Given) -> tuple[float, float, float, str]:
    """The method itself."""
    return 1.0, 1.0, 1.0, "the same optimizer"


def _unchanged(_: _Given) -> tuple[float, float, float, str]:
    """SAM and the others change where gradients are taken or what becomes of the weights, not what a step is.

    Foret et al. (2010.01412) and Charles et al. (2503.09799, one group) keep the rate of the base optimizer.
    """
    return 1.0, 0.5, 1.0, "it is put around an optimizer, whose rate stays"


def _tam(given: _Given) -> tuple[float, float, float, str]:
    """Gradients enter TAM's momentum times d = (1 + s) / 2, so eta' d = eta: eta' = 2 eta / (1 + s).

    s = 0 for uncorrelated gradients gives 2 eta, s = 1 for constant ones eta.
    """
    factor = 2 / (1 + max(given.cosine, 0.0))
    return factor, 1.0, 2.0, "equal gain: gradients enter the momentum times (1 + s) / 2, s the smoothed cosine"


def _adatamw(given: _Given) -> tuple[float, float, float, str]:
    """AdaTAM's momentum has no factor (1 - beta1) and takes gradients times d = (1 + s) / 2.

    Its update is d / (1 - beta1) times AdamW's, with constant and with uncorrelated gradients alike, so
    eta' = 2 (1 - beta1) eta / (1 + s): a fifth of AdamW's at s = 0 and a tenth at s = 1 for beta1 = 0.9.  The first
    step is d / sqrt(1 - beta2) = 16 times as large as AdamW's for beta2 = 0.999, since v is not bias-corrected.
    """
    one = 1 - given.beta
    factor = 2 * one / (1 + max(given.cosine, 0.0))
    return factor, one, 2 * one, "equal steady state: the momentum has no factor 1 - beta1; keep a warm-up"


def _lion(given: _Given) -> tuple[float, float, float, str]:
    """Every element of Lion's update is 1, of AdamW's r for uncorrelated gradients: eta' = r eta = eta / 4.4.

    The authors (2302.06675, section 5) advise eta / 10 to eta / 3, with weight decay three to ten times as large.
    """
    reason = "equal size for uncorrelated gradients; multiply weight_decay by known lr / this lr"
    return given.noise, min(0.1, given.noise), max(1 / 3, given.noise), reason


def _critical_momenta(given: _Given) -> tuple[float, float, float, str]:
    """v is made of the same u = m + mean(B) that it divides, so the update is about 1 for any gradients.

    Constant gradients give eta' = eta, uncorrelated ones eta' = r eta; the authors (2307.09638) search eta and
    eta / 10.
    """
    reason = "equal size for uncorrelated gradients: it divides by the root mean square of the momentum itself"
    return given.noise, min(0.1, given.noise), 1.0, reason


def _critical_gradients_adamw(_: _Given) -> tuple[float, float, float, str]:
    """Both moments are made of g + mean(B), so a factor on it cancels; eta / 10 is searched as for Critical Momenta."""
    return 1.0, 0.1, 1.0, "both moments see the buffer, so its size cancels"


def _critical_sgd(_: _Given) -> tuple[float, float, float, str]:
    """With constant gradients g + mean(B) = 2 g and m + mean(B) = 2 m: eta' = eta / 2; eta if the buffer averages out.

    The authors (2307.09638) search a tenth as well.
    """
    return 0.5, 0.1, 1.0, "with constant gradients the buffer doubles the step; variant: sgd"


def _muon(_: _Given) -> tuple[float, float, float, str]:
    """match_rms_adamw scales the orthogonal update to a root mean square of 0.2, AdamW's own r = 0.23 at beta1 = 0.9.

    Liu et al., arXiv 2502.16982, section 2.2: AdamW's rate and weight decay are used as they are.
    """
    return 1.0, 0.5, 2.0, "adjust_lr_fn: match_rms_adamw gives updates AdamW's root mean square; weight decay stays"


def _rotated(_: _Given) -> tuple[float, float, float, str]:
    """Adam in another orthogonal basis: updates have Adam's norm, and SOAP (2409.11321) is run at AdamW's rate."""
    return 1.0, 0.5, 2.0, "Adam in another basis, whose updates have the same norm"


def _adafactor(given: _Given) -> tuple[float, float, float, str]:
    """The update g / sqrt(v) of size 1, without momentum, times the root mean square of the weights.

    Equal for uncorrelated gradients at eta' = r eta / rms(w), for constant ones at eta / rms(w).
    """
    scale = 1 / given.weight_rms
    reason = "steps are relative to the root mean square of weights; equal size for uncorrelated gradients"
    return given.noise * scale, given.noise * scale / 2, scale, reason


def _schedule_free_adamw(_: _Given) -> tuple[float, float, float, str]:
    """The authors (2405.15682) find one to ten times the rate that suits a decaying schedule."""
    return 2.0, 1.0, 10.0, "the authors' range: 1 to 10 times AdamW's with a decaying schedule; use schedule: constant"


def _schedule_free_sgd(given: _Given) -> tuple[float, float, float, str]:
    """z has no momentum, which multiplies by 1 / (1 - beta): eta' = eta / (1 - beta).

    The authors (2405.15682) find 10 to 50 times the rate that suits a decaying schedule.
    """
    factor = 1 / (1 - given.beta)
    reason = "equal gain: the iterate z has no momentum, which would multiply by 1 / (1 - beta); use schedule: constant"
    return factor, factor, 5 * factor, reason


_RULES: dict[str, dict[str, _Rule]] = {
    "adamw": {
        "adamw": _same,
        "adatamw": _adatamw,
        "lion": _lion,
        "critical_momenta": _critical_momenta,
        "critical_gradients": _critical_gradients_adamw,
        "muon": _muon,
        "soap": _rotated,
        "rotated_adam": _rotated,
        "adafactor": _adafactor,
        "schedule_free_adamw": _schedule_free_adamw,
    },
    "sgd": {
        "sgd": _same,
        "tam": _tam,
        "critical_momenta": _critical_sgd,
        "critical_gradients": _critical_sgd,
        "schedule_free_sgd": _schedule_free_sgd,
    },
}
