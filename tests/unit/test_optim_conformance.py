"""Every optimizer of the tables passes the suite; each check finds what it is for."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from lowland.optim.conformance import CHECKS, Subject, conformance, sight, subjects
from lowland.optim.methods import AROUND, METHODS

SUBJECTS = subjects()
SEES = {"elements": {"elements"}, "sums": {"tensors", "model"}, "tensors": {"tensors"}}


@pytest.mark.parametrize("name", SUBJECTS)
def test_optimizers_conform(name: str) -> None:
    failed = [f"{result.check}: {result.reason}" for result in conformance(SUBJECTS[name]) if not result.passed]
    assert failed == []


def test_every_row_is_examined() -> None:
    assert SUBJECTS.keys() == METHODS.keys() | AROUND.keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_what_a_method_sees(name: str) -> None:
    assert sight(SUBJECTS[name]).sees in SEES[METHODS[name].sees]


def own_classes() -> list[str]:
    """The subjects whose own class, and not torch's inside, checks the arguments."""
    return [name for name, method in METHODS.items() if inspect.isclass(method.make)] + list(AROUND)


@pytest.mark.parametrize("name", own_classes())
def test_own_messages_say_the_bound(name: str) -> None:
    for argument, value in {"gamma": 1.0, "betas": (0.9, 1.0), "momentum": 1.0, "rho": -1.0}.items():
        row = METHODS.get(name) or AROUND[name]
        if argument in inspect.signature(row.make).parameters:
            with pytest.raises(ValueError, match=rf"{argument}.*(\[0, 1\)|>= 0|> 0).*got"):
                SUBJECTS[name].build([nn.Parameter(torch.ones(2, 2))], **{argument: value})


class Variant(SGD):
    """Gradient descent with something wrong in it."""

    flaw = ""
    count = 0

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        Variant.count += 1
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    self.change(p, group["lr"])
        return 0.0 if self.flaw == "loss" else loss

    def change(self, p: Any, lr: float) -> None:
        if self.flaw == "frozen" and not p.requires_grad:
            p.mul_(1 - lr)
        if self.flaw == "missing" and p.grad is None and p.requires_grad:
            p.mul_(1 - lr)
        if p.grad is None:
            return
        if p.is_complex() and self.flaw == "complex":
            p.sub_(p.grad.real, alpha=lr)
            return
        gradient = p.grad
        if gradient.is_sparse:
            gradient = gradient.to_dense() * (2 if self.flaw == "sparse" else 1)
        if self.flaw == "memory":
            gradient = gradient.as_strided(gradient.shape, torch.empty(gradient.shape).stride())
        count = self.state[p]["n"] = 1 + self.state[p].get("n", 0)
        factor = {
            "up": -1.0,
            "rate": 0.01 / lr,
            "random": 1 + 1e-3 * (Variant.count % 7),
            "state": 1.0 if count < 8 else 0.5,
            "groups": 1.0 / len(self.param_groups),
        }.get(self.flaw, 1.0)
        p.sub_(gradient, alpha=lr * factor)

    def state_dict(self) -> Any:
        saved = super().state_dict()
        return {**saved, "state": {}} if self.flaw == "state" else saved


FLAWS = {
    "up": "converges_on_a_quadratic",
    "rate": "the_rate_is_read_at_each_step",
    "loss": "the_closure_is_evaluated_and_returned",
    "state": "state_round_trips",
    "random": "runs_repeat",
    "groups": "groups_are_only_a_grouping",
    "frozen": "frozen_parameters_stay",
    "missing": "missing_gradients_are_left_out",
    "memory": "memory_order_does_not_matter",
    "complex": "complex_parameters_are_refused",
    "sparse": "sparse_gradients_are_refused",
}


def flawed(flaw: str) -> Callable[..., Optimizer]:
    return type("Flawed", (Variant,), {"flaw": flaw})


@pytest.mark.parametrize(("flaw", "check"), FLAWS.items())
def test_each_check_finds_what_it_is_for(flaw: str, check: str) -> None:
    found = CHECKS[check](Subject(flaw, flawed(flaw), {"lr": 0.02}))
    assert found is not None
    assert CHECKS[check](Subject("sound", flawed(""), {"lr": 0.02})) is None


def test_rosenbrock_is_not_found_downhill_alone() -> None:
    check = CHECKS["converges_on_rosenbrock"]
    assert check(Subject("slow", SGD, {"lr": 1e-5})) is not None
    assert check(Subject("diverging", SGD, {"lr": 10.0})) is not None


def test_arguments_that_are_taken_silently_are_found() -> None:
    class Careless(SGD):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, abs(lr))

    found = CHECKS["bad_arguments_are_named"](Subject("careless", Careless, {"lr": 0.1}))
    assert found is not None
    assert found.reason == "lr=-1.0 is accepted"


def test_an_exception_is_a_finding() -> None:
    def broken(params: Any, **_: Any) -> Optimizer:
        raise KeyError("nothing")

    results = conformance(Subject("broken", broken))
    assert not any(result.passed for result in results if result.check.startswith("converges"))
    assert results[0].reason == "KeyError: 'nothing'"
