"""Checks that a training can be stopped, taken up and repeated."""

import io
from typing import Any

import torch

from lowland.optim.conformance.problems import Tensors, descend, parameters, quadratic
from lowland.optim.conformance.subject import Finding, Subject


def state_round_trips(subject: Subject) -> Finding | None:
    """Saved after 7 steps and loaded into a new optimizer, it goes on as if nothing had been, to the bit."""
    values = parameters(subject)
    optimizer = subject.build(list(values.values()))
    descend(optimizer, values, quadratic, 7)
    saved = _through_a_file(optimizer.state_dict())
    copies = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    restored = subject.build(list(copies.values()))
    restored.load_state_dict(saved)
    descend(optimizer, values, quadratic, 5)
    descend(restored, copies, quadratic, 5)
    return _differ("after its state was saved and loaded, the same 5 steps lead elsewhere in", values, copies)


def runs_repeat(subject: Subject) -> Finding | None:
    """The same 10 steps twice give the same weights, to the bit."""
    first, second = parameters(subject), parameters(subject)
    for values in (first, second):
        descend(subject.build(list(values.values())), values, quadratic, 10)
    return _differ("two runs of the same 10 steps differ in", first, second)


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Without pickle's code: only tensors, numbers and containers survive."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def _differ(what: str, first: Tensors, second: Tensors) -> Finding | None:
    names = [name for name in first if not torch.equal(first[name], second[name])]
    return Finding(f"{what}: {', '.join(names)}") if names else None
