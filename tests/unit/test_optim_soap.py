"""SOAP against an independent double, and in its limits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland.optim import SOAP


def steps(optimizer: SOAP, *rounds: dict[nn.Parameter, Tensor]) -> None:
    for gradients in rounds:
        for p, gradient in gradients.items():
            p.grad = gradient.to(p.dtype)
        optimizer.step()


def gradients(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def test_the_first_step_only_makes_the_preconditioner() -> None:
    p = nn.Parameter(torch.ones(3, 2))
    (gradient,) = gradients(1, 3, 2)
    optimizer = SOAP([p], lr=0.1, weight_decay=0.5, betas=(0.9, 0.95), shampoo_beta=0.8)
    steps(optimizer, {p: gradient})
    assert torch.equal(p, torch.ones(3, 2))
    state = optimizer.state[p]
    assert state["step"] == 0
    assert torch.allclose(state["gram_0"], 0.2 * gradient @ gradient.T)
    assert torch.allclose(state["gram_1"], 0.2 * gradient.T @ gradient)
    for dim in (0, 1):
        basis = state[f"basis_{dim}"]
        turned = basis.T @ state[f"gram_{dim}"] @ basis
        assert torch.allclose(basis.T @ basis, torch.eye(len(basis)), atol=1e-6)
        assert torch.allclose(turned, turned.diagonal().diag(), atol=1e-6)
        assert turned.diagonal().diff().max() < 1e-6


def naive(start: Tensor, rounds: list[Tensor], *, lr: float, decay: float, frequency: int) -> Tensor:
    """SOAP on one matrix in double precision, written out with the moment kept in the standard basis."""
    beta1, beta2, eps = 0.9, 0.8, 1e-8
    w, first, *others = start.double(), *[g.double() for g in rounds]
    left, right = (1 - beta2) * first @ first.T, (1 - beta2) * first.T @ first
    u, v = (torch.linalg.eigh(gram).eigenvectors.flip(1) for gram in (left, right))
    moment, second = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(others, 1):
        moment = beta1 * moment + (1 - beta1) * g
        second = beta2 * second + (1 - beta2) * (u.T @ g @ v) ** 2
        step = u @ ((u.T @ moment @ v) / (second.sqrt() + eps)) @ v.T
        w = (w - lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) * step) * (1 - lr * decay)
        left, right = beta2 * left + (1 - beta2) * g @ g.T, beta2 * right + (1 - beta2) * g.T @ g
        if t % frequency == 0:
            rows = (u.T @ left @ u).diagonal().argsort(descending=True)
            columns = (v.T @ right @ v).diagonal().argsort(descending=True)
            second = second[rows][:, columns]
            u, v = torch.linalg.qr(left @ u[:, rows]).Q, torch.linalg.qr(right @ v[:, columns]).Q
    return w


@pytest.mark.parametrize("frequency", [1, 3, 100])
def test_against_the_equations_written_out(frequency: int) -> None:
    start, *rounds = gradients(13, 4, 4, seed=3)
    p = nn.Parameter(start.clone())
    optimizer = SOAP([p], lr=1e-2, betas=(0.9, 0.8), weight_decay=0.1, precondition_frequency=frequency)
    steps(optimizer, *[{p: g} for g in rounds])
    expected = naive(start, rounds, lr=1e-2, decay=0.1, frequency=frequency)
    assert (p.double() - expected).norm() < 1e-4 * (expected - start).norm()


def adam(p: nn.Parameter, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW([p], lr=1e-2, betas=(0.95, 0.95), eps=1e-12, weight_decay=0.0, **options)


@pytest.mark.parametrize(("shape", "longest"), [((7,), 10), ((3, 4), 2)], ids=["1-D", "every side too long"])
def test_without_a_basis_it_is_adam_from_the_second_gradient_on(shape: tuple[int, ...], longest: int) -> None:
    p, q = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizer = SOAP([p], lr=1e-2, eps=1e-12, max_precondition_dim=longest)
    reference = adam(q)
    first, *rounds = gradients(8, *shape)
    steps(optimizer, {p: first})
    for gradient in rounds:
        steps(optimizer, {p: gradient})
        q.grad = gradient
        reference.step()
    assert torch.allclose(p, q, atol=1e-6)
    assert not any(name.startswith("gram") for name in optimizer.state[p])


def test_a_long_side_is_not_rotated() -> None:
    p = nn.Parameter(torch.zeros(5, 3))
    optimizer = SOAP([p], max_precondition_dim=4)
    steps(optimizer, *[{p: g} for g in gradients(3, 5, 3)])
    assert {name for name in optimizer.state[p] if name.startswith("basis")} == {"basis_1"}


def test_it_does_not_depend_on_the_basis_of_a_side() -> None:
    """Adam does: turning all gradients by an orthogonal matrix turns SOAP's steps with them."""
    turn = torch.linalg.qr(gradients(1, 4, 4, seed=9)[0]).Q
    rounds = gradients(10, 4, 3, seed=4)
    plain, turned = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(4, 3))
    steps(SOAP([plain], lr=1e-2, precondition_frequency=1), *[{plain: g} for g in rounds])
    steps(SOAP([turned], lr=1e-2, precondition_frequency=1), *[{turned: turn @ g} for g in rounds])
    assert (turn @ plain - turned).norm() < 1e-3 * plain.norm()
    q, r = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(4, 3))
    for p, rotation in ((q, torch.eye(4)), (r, turn)):
        optimizer = adam(p)
        for gradient in rounds:
            p.grad = rotation @ gradient
            optimizer.step()
    assert (turn @ q - r).norm() > 0.1 * q.norm()


def test_convolutions_have_a_basis_for_each_dimension() -> None:
    p = nn.Parameter(torch.zeros(3, 2, 2, 2))
    optimizer = SOAP([p], lr=1e-2, precondition_frequency=2)
    rounds = gradients(6, 3, 2, 2, 2)
    steps(optimizer, *[{p: g} for g in rounds])
    assert sum(name.startswith("basis") for name in optimizer.state[p]) == 4
    assert p.isfinite().all()
    assert p.norm() > 0


def test_state_dict_round_trip_goes_on_bitwise() -> None:
    rounds = gradients(8, 4, 3)
    whole, before = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    reference, first = SOAP([whole], precondition_frequency=2), SOAP([before], precondition_frequency=2)
    steps(reference, *[{whole: g} for g in rounds])
    steps(first, *[{before: g} for g in rounds[:4]])
    after = nn.Parameter(before.detach().clone())
    second = SOAP([after], lr=0.5)
    second.load_state_dict(first.state_dict())
    steps(second, *[{after: g} for g in rounds[4:]])
    assert torch.equal(after, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr >= 0 must hold, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas in \[0, 1\) must hold"),
        ({"shampoo_beta": 1.0}, r"shampoo_beta in \[0, 1\) must hold"),
        ({"eps": 0.0}, "eps > 0 must hold"),
        ({"weight_decay": -0.1}, "weight_decay >= 0 must hold"),
        ({"precondition_frequency": 0}, "precondition_frequency >= 1 must hold"),
        ({"max_precondition_dim": -1}, "max_precondition_dim >= 0 must hold"),
    ],
)
def test_arguments_outside_their_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SOAP([nn.Parameter(torch.ones(2))], **arguments)
