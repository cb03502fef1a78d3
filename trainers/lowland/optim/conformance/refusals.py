"""Checks that what cannot work is refused with words that help."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowland.optim.conformance.problems import descend, parameters
from lowland.optim.conformance.subject import Finding, Subject

BAD: dict[str, tuple[Any, str]] = {
    "lr": (-1.0, r"lr|learning rate"),
    "weight_decay": (-1.0, r"weight[_ ]decay"),
    "betas": ((1.5, 0.9), r"beta"),
    "momentum": (-1.0, r"momentum"),
    "gamma": (-1.0, r"gamma"),
    "rho": (-1.0, r"rho"),
}
"""By argument a value that is none, and what a message must call it."""


def complex_parameters_are_refused(subject: Subject) -> Finding | None:
    """Complex parameters are refused, or stepped as pairs of real numbers; never half of them."""
    value = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)))
    message = _refusal(lambda: _descend_complex(subject, value))
    if message is None:
        return None if _as_pairs(subject, value) else Finding("complex parameters are taken, and stepped wrongly")
    if not re.search("complex|real|float|dtype", message, re.IGNORECASE):
        return Finding(f"complex parameters are refused without saying so: {message!r}")
    return None


def sparse_gradients_are_refused(subject: Subject) -> Finding | None:
    """Sparse gradients are refused by name, or stepped as dense ones."""
    table = {"table": nn.Parameter(torch.ones(4, 3))}
    dense = {"table": nn.Parameter(torch.ones(4, 3))}
    message = _refusal(lambda: descend(subject.build(list(table.values())), table, _rows_used(sparse=True), 2))
    if message is None:
        descend(subject.build(list(dense.values())), dense, _rows_used(sparse=False), 2)
        if torch.allclose(table["table"], dense["table"], atol=1e-6):
            return None
        return Finding("sparse gradients are taken, and stepped unlike dense ones")
    return None if "sparse" in message.lower() else Finding(f"sparse gradients: the message is {message!r}")


def bad_arguments_are_named(subject: Subject) -> Finding | None:
    """A ValueError tells the argument and the value; arguments that the optimizer does not have are left out."""
    for name, (value, called) in BAD.items():
        if name != "lr" and not _takes(subject, name):
            continue
        try:
            subject.build(list(parameters(subject).values()), **{name: value})
        except ValueError as error:
            shown = str(value[0] if isinstance(value, tuple) else value).rstrip("0").rstrip(".")
            said = re.search(called, str(error).replace(" value", ""), re.IGNORECASE)
            if not said or shown not in str(error):
                return Finding(f"{name}={value} is refused without naming both: {error}")
        else:
            return Finding(f"{name}={value} is accepted")
    return None


def _takes(subject: Subject, name: str) -> bool:
    try:
        subject.build(list(parameters(subject).values()), **{name: BAD[name][0]})
    except TypeError:
        return False
    except Exception:
        return True
    return True


def _refusal(attempt: Callable[[], Any]) -> str | None:
    """The message with which it is refused."""
    try:
        attempt()
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return None


def _descend_complex(subject: Subject, value: nn.Parameter) -> None:
    descend(subject.build([value]), {"value": value}, lambda v: v["value"].abs().square().sum(), 3)


def _as_pairs(subject: Subject, stepped: nn.Parameter) -> bool:
    fresh = torch.randn(3, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    pairs = nn.Parameter(torch.view_as_real(fresh).clone())
    descend(subject.build([pairs]), {"value": pairs}, lambda v: v["value"].square().sum(), 3)
    return torch.allclose(torch.view_as_real(stepped.detach()), pairs, atol=1e-5)


def _rows_used(*, sparse: bool) -> Callable[[Any], Tensor]:
    def loss(values: Any) -> Tensor:
        rows = nn.functional.embedding(torch.tensor([0, 2]), values["table"], sparse=sparse)
        return (rows**2).sum()

    return loss
