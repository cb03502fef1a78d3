"""A small classifier under training methods, on one batch that is cut over ranks and micro-batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.trainers.methods.base import Method, Outputs, Problem
from lowland.trainers.methods.objective import Objective

CLASSES, GROUPS, EXAMPLES = 4, 3, 24
PROBLEM = Problem(classes=CLASSES, class_counts=(40, 20, 10, 5), groups=GROUPS, shape=(6,), seed=3)


class Network(nn.Module):
    """Two layers; the second is the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.fc(self.body(x).relu())


def network() -> Network:
    """The same at every call."""
    torch.manual_seed(0)
    return Network()


def examples() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and groups; groups and classes are of unequal size."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, 6, generator=generator)
    labels = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
    groups = torch.randint(GROUPS, (EXAMPLES,), generator=generator)
    return inputs, labels, groups


def outputs(model: nn.Module, rows: slice = slice(None)) -> Outputs:
    """What the model says of some of the examples."""
    inputs, labels, groups = (values[rows] for values in examples())
    kept: dict[str, Tensor] = {}
    hook = model.fc.register_forward_pre_hook(lambda _, arguments: kept.update(features=arguments[0]))
    logits = model(inputs)
    hook.remove()
    losses = F.cross_entropy(logits, labels, reduction="none")
    targets = F.one_hot(labels, CLASSES).float()
    return Outputs(logits, targets, labels, losses, kept["features"], groups)


def built(method: Method) -> tuple[Network, Method]:
    """A network and a method that has seen it."""
    model = network()
    method.build(model, PROBLEM)
    return model, method


def gradients(method: Any, ranks: int = 1, micro_batches: int = 1, model: nn.Module | None = None) -> list[Tensor]:
    """Gradients of the mean objective over the batch, cut over ranks and micro-batches.

    Ranks run one after the other: the first time they are only asked for their rows.
    """
    if model is None:
        model, method = built(method)
    methods = [method] if isinstance(method, Method) else list(method)
    size = EXAMPLES // ranks // micro_batches
    cuts = [
        [slice((rank * micro_batches + i) * size, (rank * micro_batches + i + 1) * size) for i in range(micro_batches)]
        for rank in range(ranks)
    ]
    for each in methods:
        each.begin_step(0)
    rows: dict[int, Tensor] = {}
    for rank, cut in enumerate(cuts):
        _on_rank(methods, model, cut, lambda own, rank=rank: (rows.setdefault(rank, own), 0))
    model.zero_grad()
    for each in methods:
        each.begin_step(0)
    together = torch.cat([rows[rank] for rank in range(ranks)]) if rows else torch.empty(0)
    for rank, cut in enumerate(cuts):
        first = rank * micro_batches * size
        _on_rank(methods, model, cut, lambda own, first=first: (together, first))
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _on_rank(methods: Sequence[Method], model: nn.Module, cut: Sequence[slice], gather: Any) -> None:
    objective = Objective(methods, gather)
    if len(cut) > 1 and objective.of_batch:
        with torch.no_grad(), objective.collecting():
            for rows in cut:
                objective(outputs(model, rows))
    for rows in cut:
        (objective(outputs(model, rows)) / EXAMPLES).backward()


def plain_gradients() -> list[Tensor]:
    """Gradients of the mean loss, without any of this."""
    model = network()
    for micro in (slice(None),):
        (outputs(model, micro).losses.sum() / EXAMPLES).backward()
    return [parameter.grad for parameter in model.parameters()]


def gradients_of(value: Tensor, model: nn.Module) -> list[Tensor]:
    """Gradients of any number."""
    return list(torch.autograd.grad(value, list(model.parameters())))
