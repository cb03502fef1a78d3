"""Trainings with optimizers of lowland and of others, each used as its own documentation says."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from lowland.optim import EMA, SAM, LayoutOptimizer, Lookbehind
from lowland.optim.methods import METHODS

Closure = Callable[[], Tensor]
"""Clears the gradients, evaluates the batch at the present weights and makes its gradients."""
Arguments = dict[str, Any]

SGD: Arguments = {"lr": 0.05, "momentum": 0.9}
"""The base of everything that is put around an optimizer."""
RHO, GSAM_ALPHA, HALF_LIFE = 0.05, 0.2, 5.0
EVERY, OUTER = 5, 0.4


@dataclass(frozen=True)
class Training:
    """One optimizer at work."""

    step: Callable[[Closure], object]
    """One step on the batch of the closure."""
    seen: Callable[[], list[Tensor]] = list
    """What is compared besides the weights: averages of them."""


Ours = Callable[[nn.Module], Training]
Theirs = Callable[[nn.Module, Any], Training]
"""Takes the package's module too."""


def ours(name: str, *, matrices: bool = False, **arguments: Any) -> Ours:
    """A method of the table, on all parameters or on matrices alone."""

    def make(model: nn.Module) -> Training:
        named = [(key, p) for key, p in model.named_parameters() if p.dim() > 1 or not matrices]
        optimizer = METHODS[name].make(named, **arguments)
        return Training(steps(optimizer).step, lambda: averages(optimizer))

    return make


def theirs(name: str, *, matrices: bool = False, **arguments: Any) -> Theirs:
    """A class that is used as torch's are."""

    def make(model: nn.Module, module: Any) -> Training:
        return steps(getattr(module, name)([p for p in model.parameters() if p.dim() > 1 or not matrices], **arguments))

    return make


def around(wrapper: Callable[..., Any], *arguments: Any, **named: Any) -> Ours:
    """Something of lowland's around SGD; what takes several gradients is given the closure."""

    def make(model: nn.Module) -> Training:
        optimizer = wrapper(sgd(model), *arguments, **named)
        several = isinstance(optimizer, SAM | Lookbehind)
        step = optimizer.step if several else steps(optimizer).step
        return Training(step, lambda: averages(optimizer) if isinstance(optimizer, EMA) else [])

    return make


def steps(optimizer: Any) -> Training:
    """A gradient, then a step."""

    def step(closure: Closure) -> None:
        closure()
        optimizer.step()

    return Training(step)


def sgd(model: nn.Module) -> torch.optim.SGD:
    """The base of everything that is put around an optimizer."""
    return torch.optim.SGD(model.named_parameters(), **SGD)


def averages(optimizer: Any) -> list[Tensor]:
    """What lowland would evaluate at, where that is not the weights."""
    if not isinstance(optimizer, LayoutOptimizer) or not hasattr(optimizer, "evaluation_weights"):
        return []
    return [optimizer.evaluation_weights(fragment) for fragment in optimizer.layout.fragments]


def in_full_precision(make: Callable[..., Training]) -> Callable[..., Training]:
    """The same of Muon without rounding to bf16, and of gradients so large that eps is nothing beside them."""

    def made(model: nn.Module, *module: Any) -> Training:
        training = make(model, *module)

        def step(closure: Closure) -> None:
            def scaled() -> Tensor:
                loss = closure()
                for p in model.parameters():
                    gradient(p).mul_(1e4)
                return loss

            with patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
                training.step(scaled)

        return Training(step, training.seen)

    return made


def schedule_free(name: str, **arguments: Any) -> Theirs:
    """The weights, and the average that `eval` puts in their place."""

    def make(model: nn.Module, module: Any) -> Training:
        optimizer = getattr(module, name)(model.parameters(), **arguments)
        optimizer.train()

        def average() -> list[Tensor]:
            kept = [p.detach().clone() for p in model.parameters()]
            optimizer.eval()
            found = [p.detach().clone() for p in model.parameters()]
            optimizer.train()
            fill(model, kept)
            return found

        return Training(steps(optimizer).step, average)

    return make


def two_passes(name: str, **arguments: Any) -> Theirs:
    """A class around SGD that wants the first gradient before its step."""

    def make(model: nn.Module, module: Any) -> Training:
        optimizer = getattr(module, name)(model.parameters(), torch.optim.SGD, **arguments, **SGD)

        def step(closure: Closure) -> None:
            closure()
            optimizer.step(closure)

        return Training(step)

    return make


def gsam(model: nn.Module, module: Any) -> Training:
    """GSAM with a radius that stays."""

    class Constant:
        def step(self) -> float:
            return RHO

    optimizer = module.GSAM(model.parameters(), sgd(model), model, Constant(), alpha=GSAM_ALPHA)
    return Training(lambda closure: optimizer.step(lambda: (None, torch.enable_grad()(closure)())))


def sam_pytorch(model: nn.Module, module: Any) -> Training:
    """SAM that calls the closure itself."""
    return Training(module.SAM(model.parameters(), sgd(model), rho=RHO).step)


def gradient(p: Tensor) -> Tensor:
    """There is one."""
    assert p.grad is not None
    return p.grad


def fill(model: nn.Module, values: list[Tensor]) -> None:
    """Sets the weights."""
    for p, value in zip(model.parameters(), values, strict=True):
        p.data.copy_(value.view_as(p))


def lookahead(model: nn.Module, module: Any) -> Training:
    """Lookahead around SGD."""
    return steps(module.Lookahead(sgd(model), k=EVERY, alpha=OUTER))


def ema(model: nn.Module, module: Any) -> Training:
    """An average that starts at the initial weights, which are taken out of it again."""
    optimizer, decay, left = sgd(model), 2 ** (-1 / HALF_LIFE), [1.0]
    start = [p.detach().clone() for p in model.parameters()]
    average = module.EMA(model, copy.deepcopy(model), beta=decay, min_value=decay, update_after_step=0, update_every=1)
    average.update()

    def step(closure: Closure) -> None:
        closure()
        optimizer.step()
        average.update()
        left[0] *= decay

    def seen() -> list[Tensor]:
        pairs = zip(average.ema_model.parameters(), start, strict=True)
        return [(e.detach() - left[0] * first) / (1 - left[0]) for e, first in pairs]

    return Training(step, seen)
