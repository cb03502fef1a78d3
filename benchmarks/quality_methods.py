"""Which methods are compared with which, and how a model is trained with one."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from quality_statistics import Cell, Result
from quality_tasks import Images, Task, Text, autocast
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.optim import LayoutOptimizer
from lowland.optim.layers import evaluation_weights
from lowland.optim.methods import AROUND, METHODS
from lowland.optim.mixed import Mixed

WARMUP = 0.1
"""Share of the steps in which the learning rate rises; then it falls to zero along a cosine."""
READ_EVERY = 50
"""Steps between two looks at the loss."""
NORM_BATCHES = 20
"""Batches from which BatchNorm's statistics are taken at the weights that are evaluated, for all methods alike."""


@dataclass(frozen=True)
class Entry:
    """A method as it is compared."""

    method: str
    """Its row in METHODS."""
    base: str | None = None
    """The entry that it is compared with."""
    family: str = "adamw"
    """Whose learning rate and weight decay its own follow."""
    around: str | None = None
    """What is put around it: a row in AROUND."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the outermost; all others are defaults."""
    scale: float = 1.0
    """The centre of its learning rates over that of its family."""
    decay: float = 1.0
    """Its weight decay over that of its family; with decay times the learning rate it is the inverse of `scale`."""
    constant: bool = False
    """Whether the learning rate stays after the warm-up."""
    gradients: int = 1
    """Gradient evaluations per step."""
    equal_gradients: bool = False
    """Whether it takes fewer steps, so that it evaluates as many gradients as its base."""
    tasks: tuple[str, ...] = ("lm", "resnet", "vit")

    @property
    def rows_exist(self) -> bool:
        """Whether this version of lowland has the method."""
        return self.method in METHODS and (self.around is None or self.around in AROUND)

    def steps(self, task: Task) -> int:
        """Optimizer steps of a training."""
        return task.steps // self.gradients if self.equal_gradients else task.steps

    def centre(self, task: Task) -> float:
        """The middle one of its learning rates."""
        return task.centres[self.family] * self.scale


# The same smoothing for all that AdamW is compared with, so that it makes no difference between them.
BETAS = {"betas": (0.9, 0.95)}
_PLAIN = {
    "adamw": Entry("adamw", arguments=BETAS),
    "sgd": Entry("sgd", family="sgd", arguments={"momentum": 0.9}, tasks=("lm", "resnet")),
    # SGD's decay passes through its momentum and so counts 1 / (1 - 0.9) times; TAM's is decoupled.
    "tam": Entry("tam", "sgd", "sgd", scale=2.0, decay=5.0, tasks=("lm", "resnet")),
    "adatamw": Entry("adatamw", "adamw", arguments=BETAS, scale=1 / 8, decay=8.0),
    "critical_momenta": Entry("critical_momenta", "adamw", arguments=BETAS, scale=1 / 4, decay=4.0),
    "critical_gradients": Entry("critical_gradients", "adamw", arguments=BETAS),
    "lion": Entry("lion", "adamw", scale=1 / 4, decay=4.0),
    "schedule_free_adamw": Entry("schedule_free_adamw", "adamw", arguments=BETAS, scale=2.0, decay=0.5, constant=True),
    "schedule_free_sgd": Entry("schedule_free_sgd", "sgd", "sgd", scale=10.0, constant=True, tasks=("resnet",)),
    "muon": Entry("muon", "adamw", arguments={"adjust_lr_fn": "match_rms_adamw"}, tasks=("lm", "vit")),
    "adafactor": Entry("adafactor", "adamw", scale=10.0, decay=0.1),
}
_AROUND: tuple[tuple[str, str, dict[str, Any], int], ...] = (
    # Name, row, arguments, gradient evaluations per step.
    ("sam", "sam", {"rho": 0.05}, 2),
    ("asam", "sam", {"rho": 0.5, "adaptive": "matrices"}, 2),
    ("lookbehind", "lookbehind", {"rho": 0.05, "k": 2}, 3),
    ("ema", "ema", {"half_life": 20.0}, 1),
    ("diloco", "diloco", {"every": 20, "lr": 0.4}, 1),
    ("nowcast", "nowcast", {"period": 50}, 1),
)
_BASES = {"sgd": ("resnet",), "adamw": ("lm", "vit")}
# Eigenvectors and singular vectors take longest: last.
_SLOW = {
    "soap": Entry("soap", "adamw"),
    "rotated_adam": Entry("rotated_adam", "adamw", arguments=BETAS | {"basis": "svd", "refresh": 50}),
}


def _entries() -> dict[str, Entry]:
    found = dict(_PLAIN)
    for name, row, arguments, gradients in _AROUND:
        for base, tasks in _BASES.items():
            entry = Entry(base, base, base, row, arguments, gradients=gradients, tasks=tasks)
            found[f"{name}({base})"] = entry
            if gradients > 1:
                found[f"{name}({base})/{gradients}"] = replace(entry, equal_gradients=True)
    return found | _SLOW


ENTRIES = _entries()


def build(entry: Entry, model: nn.Module, rate: float, decay: float) -> Optimizer:
    """The optimizer: matrices and convolutions are decayed, vectors are not."""
    method, inner = METHODS[entry.method], _inner_arguments(entry)
    hidden = {name for name, p in model.named_parameters() if p.dim() == 2 and "blocks." in name}
    chosen = {name: p for name, p in model.named_parameters() if name in hidden or not method.matrices_only}
    rest = {name: p for name, p in model.named_parameters() if name not in chosen}
    optimizer = method.make(_groups(chosen, decay), lr=rate, **inner)
    if rest:
        optimizer = Mixed([optimizer, METHODS["adamw"].make(_groups(rest, decay), lr=rate, **BETAS)])
    return AROUND[entry.around].make(optimizer, **entry.arguments) if entry.around else optimizer


def _inner_arguments(entry: Entry) -> dict[str, Any]:
    return entry.arguments if entry.around is None else ENTRIES[entry.method].arguments


def _groups(parameters: dict[str, nn.Parameter], decay: float) -> list[dict[str, Any]]:
    decayed = [p for p in parameters.values() if p.dim() >= 2]
    others = [p for p in parameters.values() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def train(entry: Entry, task: Task, data: Text | Images, cell: Cell, device: torch.device) -> Result:
    """Trains a model from the cell's seed, which fixes its initial weights, its batches and their augmentation."""
    begun, steps = time.monotonic(), entry.steps(task)
    torch.manual_seed(cell.seed)
    model = data.model().to(device)
    optimizer = build(entry, model, cell.rate, task.decays[entry.family] * entry.decay)
    generator = torch.Generator(device).manual_seed(cell.seed)
    rates = [group["lr"] for group in optimizer.param_groups]
    losses, gradients = [], 0
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(step, steps, constant=entry.constant)
        batch = Batch(model, data.loss(model, generator), device)
        optimizer.step(batch)  # type: ignore[arg-type]
        losses.append(batch.losses[0])
        gradients += len(batch.losses)
        if step % READ_EVERY == READ_EVERY - 1 and not math.isfinite(float(losses[-1])):
            break
    last = float(torch.stack(losses[-READ_EVERY:]).mean())
    tuning = quality = math.nan
    if math.isfinite(last):
        with at_evaluation_weights(optimizer), torch.no_grad(), autocast(device):
            _take_norm_statistics(model, data, generator)
            model.eval()
            tuning, quality = data.quality(model, "tuning"), data.quality(model, "test")
    seconds = time.monotonic() - begun
    return Result(_finite(tuning), _finite(quality), _finite(last), steps, gradients, seconds)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def factor(step: int, steps: int, *, constant: bool) -> float:
    """The learning rate of a step, from 0, over its peak: a linear warm-up, then a cosine to zero or nothing."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if constant else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


class Batch:
    """The closure of a step: evaluates its loss and gradients as often as the optimizer asks."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> None:
        self._model, self._loss, self._device = model, loss, device
        self.losses: list[Tensor] = []
        """By evaluation."""

    def __call__(self) -> Tensor:
        """The loss; the parameters have its gradients."""
        self._model.zero_grad()
        with autocast(self._device):
            loss = self._loss()
        loss.backward()
        self.losses.append(loss.detach())
        return self.losses[-1]


@contextmanager
def at_evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """The model has the weights inside that the optimizer wants it to be evaluated at."""
    find = evaluation_weights(optimizer)
    if find is None:
        yield
        return
    with _at(optimizer, find):
        yield


@contextmanager
def _at(optimizer: Optimizer, find: Callable[[Any], Tensor]) -> Iterator[None]:
    """The model has other weights inside; afterwards its own again, to the bit."""
    assert isinstance(optimizer, LayoutOptimizer)
    fragments = optimizer.layout.fragments
    kept = [fragment.tensor.detach().clone() for fragment in fragments]
    with torch.no_grad():
        found = [find(fragment) for fragment in fragments]
        torch._foreach_copy_([fragment.tensor.data for fragment in fragments], found)
    yield
    torch._foreach_copy_([fragment.tensor.data for fragment in fragments], kept)


def _take_norm_statistics(model: nn.Module, data: Text | Images, generator: torch.Generator) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    for _ in range(NORM_BATCHES if norms else 0):
        data.loss(model, generator)()
