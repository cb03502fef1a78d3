"""The rules for learning rates, against the size of steady-state updates that the optimizers really make."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowland.optim.methods import AROUND, METHODS
from lowland.optim.suggest import suggest_lr

LR = 1e-3
SHAPE = (40, 50)

Gradients = Callable[[], Tensor]


def constant() -> Gradients:
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return lambda: gradient


def uncorrelated() -> Gradients:
    generator = torch.Generator().manual_seed(2)
    return lambda: torch.randn(SHAPE, generator=generator)


def update_size(name: str, lr: float, gradients: Gradients, **arguments: Any) -> float:
    """Root mean square of one update, over the last 100 of 400 steps; weights stay near their start."""
    p = nn.Parameter(torch.full(SHAPE, 0.02))
    optimizer = METHODS[name].make([p], lr=lr, weight_decay=0.0, **arguments)
    sizes = []
    for number in range(400):
        before = p.detach().clone()
        p.grad = gradients().clone()
        optimizer.step()
        if number >= 300:
            sizes.append(float((p.detach() - before).square().mean()))
        p.data.copy_(before)
    return math.sqrt(sum(sizes) / len(sizes))


def adamw(gradients: Gradients) -> float:
    return update_size("adamw", LR, gradients, betas=(0.9, 0.99))


def sgd(gradients: Gradients) -> float:
    return update_size("sgd", LR, gradients, momentum=0.9)


@pytest.mark.parametrize("case", ["uncorrelated", "constant"])
def test_tam_has_the_gain_of_momentum(case: str) -> None:
    """The rate for the cosine that each kind of gradients gives."""
    gradients, cosine = (uncorrelated, 0.0) if case == "uncorrelated" else (constant, 1.0)
    rate = suggest_lr("tam", "sgd", LR, cosine=cosine).lr
    assert update_size("tam", rate, gradients()) == pytest.approx(sgd(gradients()), rel=0.05)


@pytest.mark.parametrize("case", ["uncorrelated", "constant"])
def test_adatamw_has_the_update_of_adamw(case: str) -> None:
    gradients, cosine = (uncorrelated, 0.0) if case == "uncorrelated" else (constant, 1.0)
    rate = suggest_lr("adatamw", "adamw", LR, cosine=cosine).lr
    assert update_size("adatamw", rate, gradients(), betas=(0.9, 0.99)) == pytest.approx(adamw(gradients()), rel=0.05)


def test_adatamw_is_a_fifth_to_a_tenth() -> None:
    found = suggest_lr("adatamw", "adamw", 1.0)
    assert (found.lr, found.low, found.high) == pytest.approx((0.2, 0.1, 0.2))
    assert suggest_lr("adatamw", "adamw", 1.0, cosine=1.0).lr == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [("lion", {}, 0.03), ("critical_momenta", {"betas": (0.9, 0.99)}, 0.1), ("adafactor", {}, 0.05)],
)
def test_equal_updates_for_uncorrelated_gradients(name: str, arguments: dict[str, Any], error: float) -> None:
    rate = suggest_lr(name, "adamw", LR).lr
    assert update_size(name, rate, uncorrelated(), **arguments) == pytest.approx(adamw(uncorrelated()), rel=error)


@pytest.mark.parametrize("case", [uncorrelated, constant], ids=["uncorrelated", "constant"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("critical_gradients", {"betas": (0.9, 0.99)}),
        ("soap", {"betas": (0.9, 0.95), "precondition_frequency": 50}),
        ("rotated_adam", {}),
    ],
)
def test_the_rate_of_equal_updates_is_in_the_range(
    name: str, arguments: dict[str, Any], case: Callable[[], Gradients]
) -> None:
    found = suggest_lr(name, "adamw", LR)
    equal = found.lr * adamw(case()) / update_size(name, found.lr, case(), **arguments)
    assert found.low <= equal <= found.high


def test_muon_moves_matrices_of_full_rank_as_adamw_does_for_uncorrelated_gradients() -> None:
    """Newton-Schulz leaves singular values between 0.7 and 1.2; constant gradients, where AdamW moves by 1, differ."""
    rate = suggest_lr("muon", "adamw", LR).lr
    size = update_size("muon", rate, uncorrelated(), adjust_lr_fn="match_rms_adamw")
    assert 0.7 * 0.2 * rate < size < 1.2 * 0.2 * rate
    assert 0.2 / 1.2 < adamw(uncorrelated()) / rate < 0.2 / 0.7


@pytest.mark.parametrize(("name", "arguments"), [("critical_momenta", {}), ("lion", {}), ("adafactor", {})])
def test_the_known_rate_for_constant_gradients_is_in_reach(name: str, arguments: dict[str, Any]) -> None:
    """Where every update has size 1, as AdamW's has: the factor is 1, or 1 over the size of weights."""
    scale = 50.0 if name == "adafactor" else 1.0
    assert update_size(name, scale * LR, constant(), **arguments) == pytest.approx(adamw(constant()), rel=0.05)


@pytest.mark.parametrize("name", ["critical_momenta", "critical_gradients"])
def test_a_buffer_doubles_constant_gradients_of_sgd(name: str) -> None:
    rate = suggest_lr(name, "sgd", LR).lr
    found = update_size(name, rate, constant(), variant="sgd")
    assert found == pytest.approx(sgd(constant()), rel=0.05)


def test_schedule_free_sgd_moves_z_as_momentum_moves_weights() -> None:
    """Constant gradients: z moves by the rate times g each step, momentum by 1 / (1 - beta) of it."""
    rate = suggest_lr("schedule_free_sgd", "sgd", LR).lr
    size = float(constant()().square().mean().sqrt())
    assert rate * size == pytest.approx(sgd(constant()), rel=0.01)


@given(
    st.sampled_from(sorted({*METHODS, *AROUND})),
    st.sampled_from(["adamw", "sgd"]),
    st.floats(1e-6, 10),
    st.floats(0, 0.99),
    st.floats(-1, 1),
)
@example("lion", "adamw", 1.0, 0.99, 0.0)
@example("critical_momenta", "adamw", 1.0, 0.99, 0.0)
def test_every_method_has_a_rule_and_every_suggestion_is_in_its_range(
    method: str, known: Any, lr: float, beta: float, cosine: float
) -> None:
    try:
        found = suggest_lr(method, known, lr, beta=beta, cosine=cosine)
    except ValueError:
        known = "sgd" if known == "adamw" else "adamw"
        found = suggest_lr(method, known, lr, beta=beta, cosine=cosine)
    assert found.low * 0.999 <= found.lr <= found.high * 1.001
    assert found.reason
    assert suggest_lr(method, known, 2 * lr, beta=beta, cosine=cosine).lr == pytest.approx(2 * found.lr)


@pytest.mark.parametrize("name", AROUND)
def test_what_is_put_around_leaves_the_rate(name: str) -> None:
    assert suggest_lr(name, "adamw", LR).lr == suggest_lr(name, "sgd", LR).lr == LR


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, "lr > 0"),
        ({"beta": 1.0}, "beta in"),
        ({"cosine": 2.0}, "cosine in"),
        ({"weight_rms": 0.0}, "weight_rms > 0"),
        ({"method": "adam"}, "method must be one of adamw, sgd"),
        ({"known": "sgd"}, "no rule leads from sgd to lion: .*give a rate that is known for adamw"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suggest_lr(**{"method": "lion", "known": "adamw", "lr": LR, **arguments})
