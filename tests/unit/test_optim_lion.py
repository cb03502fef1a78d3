"""Lion against values worked out by hand, and in its limits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowland.optim import Lion
from lowland.optim.lion import lion_


def step(optimizer: torch.optim.Optimizer, p: nn.Parameter, *gradient: float) -> None:
    p.grad = torch.tensor(gradient).reshape(p.shape)
    optimizer.step()


def test_trajectory_worked_out_by_hand() -> None:
    """g = 1, -0.05, -1: the momentum outvotes the second gradient; with the third the two are of one sign."""
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = Lion([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    # m = 0 -> 0.01 -> 0.0094 -> -0.000694; 0.9 m + 0.1 g = 0.1, 0.004, -0.09154
    expected = [(2.0 * 0.95 - 0.1, 0.01), (1.8 * 0.95 - 0.1, 0.0094), (1.61 * 0.95 + 0.1, -0.000694)]
    for gradient, (theta, momentum) in zip((1.0, -0.05, -1.0), expected, strict=True):
        step(optimizer, p, gradient)
        assert p.item() == pytest.approx(theta, abs=1e-6)
        assert optimizer.state[p]["exp_avg"].item() == pytest.approx(momentum, abs=1e-8)


def test_without_momentum_in_the_step_it_is_sign_descent_to_the_bit() -> None:
    p, q = (nn.Parameter(torch.tensor([1.0, -2.0, 0.5])) for _ in range(2))
    optimizer, reference = Lion([p], lr=0.01, betas=(0.0, 0.99)), torch.optim.SGD([q], lr=0.01)
    for gradient in ((3.0, -0.2, 0.0), (-1e-30, 5.0, 1e9)):
        step(optimizer, p, *gradient)
        q.grad = torch.tensor(gradient).sign()
        reference.step()
    assert torch.equal(p, q)


def test_with_equal_betas_it_is_the_sign_of_the_new_momentum() -> None:
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(50))
    optimizer = Lion([p], lr=1.0, betas=(0.9, 0.9))
    for _ in range(5):
        before = p.detach().clone()
        step(optimizer, p, *torch.randn(50, generator=generator).tolist())
        assert torch.equal(before - p.detach(), optimizer.state[p]["exp_avg"].sign())


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), st.integers(-20, 20))
def test_a_factor_on_all_gradients_changes_nothing(gradients: list[float], exponent: int) -> None:
    """A power of two, so that nothing is rounded; so clipping by a constant factor has no effect either."""
    plain, scaled = ([torch.zeros(1)], [torch.zeros(1)]), ([torch.zeros(1)], [torch.zeros(1)])
    for gradient in gradients:
        value = torch.tensor([gradient])
        lion_(plain[0], [value], plain[1], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
        lion_(scaled[0], [value * 2.0**exponent], scaled[1], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    normal = all(gradient == 0 or abs(gradient) > 1e-20 for gradient in gradients)
    assert torch.equal(plain[0][0], scaled[0][0]) or not normal
