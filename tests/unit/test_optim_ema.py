"""The moving average of weights: closed forms, the batch-size rule, and what it is around."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowland.optim import EMA, Fragment, Layout, Parameter, Segment
from lowland.optim.ema import decay_of
from lowland.optim.rounding import round_to_bfloat16

half_lives = st.floats(0.5, 1000)


def ema_of(trajectory: list[Tensor], half_life: float, **arguments: Any) -> Tensor:
    """The average after a parameter went through these weights, one a step."""
    p = nn.Parameter(torch.zeros_like(trajectory[0]))
    optimizer = EMA(torch.optim.SGD([p], lr=1.0), half_life, **arguments)
    for weights in trajectory:
        p.grad = p.detach() - weights
        optimizer.step()
    return optimizer.evaluation_weights(optimizer.layout.fragments[0])


@given(half_lives, st.integers(1, 40), st.floats(-100, 100, width=32))
def test_constant_weights_are_their_average_to_the_bit(half_life: float, steps: int, value: float) -> None:
    constant = torch.full((3,), value)
    assert torch.equal(ema_of([constant] * steps, half_life), constant)


@given(half_lives, st.integers(1, 60))
def test_the_lag_of_linear_weights(half_life: float, steps: int) -> None:
    """With theta_t = t the mean age of what is averaged is rho / (1 - rho) - t rho^t / (1 - rho^t)."""
    rho = decay_of(half_life)
    lag = rho / (1 - rho) - steps * rho**steps / (1 - rho**steps)
    found = ema_of([torch.tensor([float(t)]) for t in range(1, steps + 1)], half_life)
    assert found.item() == pytest.approx(steps - lag, rel=1e-5)


def test_the_first_steps_are_their_mean_and_the_initial_weights_are_in_no_average() -> None:
    found = ema_of([torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([6.0])], half_life=1e6)
    assert found.item() == pytest.approx(3.0, rel=1e-5)


@given(half_lives, st.integers(1, 200))
def test_weights_are_worth_half_after_a_half_life(half_life: float, steps: int) -> None:
    assert decay_of(half_life) ** half_life == pytest.approx(0.5)
    moved = ema_of([torch.zeros(1)] * 3 + [torch.ones(1)] * steps, half_life)
    rho = decay_of(half_life)
    assert 1 - moved.item() == pytest.approx((rho**steps - rho ** (steps + 3)) / (1 - rho ** (steps + 3)), abs=1e-5)


@given(st.floats(50, 5000), st.integers(1, 20))
def test_two_half_batches_have_the_half_life_of_one(half_life: float, steps: int) -> None:
    """The weights of a step of 2 n samples, shown for two steps of n samples each, with the half-life in samples."""
    trajectory = [torch.tensor([math.sin(t)]) for t in range(steps)]
    whole = ema_of(trajectory, half_life / 64)
    halves = ema_of([weights for weights in trajectory for _ in range(2)], half_life / 32)
    assert halves.item() == pytest.approx(whole.item(), abs=2e-6)
    assert decay_of(half_life / 64) == pytest.approx(decay_of(half_life / 32) ** 2)


def test_training_is_not_touched() -> None:
    p, q = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    averaged, plain = EMA(torch.optim.AdamW([p], lr=0.1), 5), torch.optim.AdamW([q], lr=0.1)
    for number in range(5):
        p.grad = q.grad = torch.full((4,), math.cos(number))
        averaged.step()
        plain.step()
    assert torch.equal(p, q)


def test_a_parameter_without_a_gradient_stands_still_and_counts() -> None:
    p, q = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = EMA(torch.optim.SGD([p, q], lr=1.0), 1e9)
    for gradients in ((-1.0, -1.0), (-1.0, None), (-1.0, None)):
        for parameter, gradient in zip((p, q), gradients, strict=True):
            parameter.grad = None if gradient is None else torch.tensor([gradient])
        optimizer.step()
    found = [optimizer.evaluation_weights(fragment).item() for fragment in optimizer.layout.fragments]
    assert found == pytest.approx([2.0, 1.0])


def test_a_step_that_was_not_applied_is_not_averaged() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = EMA(torch.optim.SGD([p], lr=1.0), 3)
    layout = Layout.whole([[("p", p)]])
    optimizer.attach(layout)
    p.grad = torch.ones(1)
    optimizer.prepare(layout.gradients())
    optimizer.finish()
    assert optimizer.shared_state() == {"steps": 0}
    assert torch.equal(optimizer.evaluation_weights(layout.fragments[0]), p.detach())


def test_a_resume_goes_on_to_the_bit() -> None:
    def run(optimizer: EMA, p: nn.Parameter, numbers: range) -> None:
        for number in numbers:
            p.grad = torch.tensor([math.sin(number), math.cos(number)])
            optimizer.step()

    for dtype in ("float32", "bfloat16"):
        p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        whole = EMA(torch.optim.AdamW([p], lr=0.1), 4, dtype=dtype)
        run(whole, p, range(4))
        again = EMA(torch.optim.AdamW([q], lr=0.1), 4, dtype=dtype)
        again.load_state_dict(copy.deepcopy(whole.state_dict()))
        q.data.copy_(p.data)
        run(whole, p, range(4, 8))
        run(again, q, range(4, 8))
        shown = [o.evaluation_weights(o.layout.fragments[0]) for o in (whole, again)]
        assert torch.equal(shown[0], shown[1])


def test_a_bfloat16_average_follows_where_rounding_to_nearest_stands_still() -> None:
    """Each step moves by a 1442nd of the distance, and bfloat16 has 8 bits."""
    steps, half_life = 400, 1000.0
    ones = torch.ones(20_000)
    trajectory = [ones] + [ones * 1.5] * steps
    exact = ema_of(trajectory, half_life)
    rounded = ema_of(trajectory, half_life, dtype="bfloat16")
    assert float(rounded.mean()) == pytest.approx(float(exact.mean()), rel=1e-3)
    nearest = torch.tensor(1.25)
    for _ in range(steps):
        nearest = nearest.lerp(torch.tensor(1.5), 1 / 1442).bfloat16().float()
    assert nearest == 1.25


@given(st.integers(1, 400), st.integers(1, 399), st.integers(0, 2**40))
def test_rounding_does_not_see_the_cut(numel: int, cut: int, key: int) -> None:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(key % 1000))
    whole = round_to_bfloat16(values, first=0, key=key)
    parts = [
        round_to_bfloat16(part, first=first, key=key)
        for part, first in ((values[:cut], 0), (values[cut:], min(cut, numel)))
    ]
    assert torch.equal(torch.cat(parts), whole)
    below = (values.view(torch.int32) & -0x10000).view(torch.float32)
    above = ((values.view(torch.int32) & -0x10000) + 0x10000).view(torch.float32)
    assert bool(((whole.float() == below) | (whole.float() == above)).all())


def test_rounding_is_right_on_average_and_keeps_what_fits() -> None:
    exact = torch.full((50_000,), 1 + 0.3 * 2**-7)
    rounded = round_to_bfloat16(exact, first=7, key=3).float()
    assert float((rounded > 1).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert not torch.equal(rounded, round_to_bfloat16(exact, first=7, key=4).float())
    fits = torch.tensor([1.0, -0.5, 0.0, 3.0])
    assert torch.equal(round_to_bfloat16(fits, first=0, key=9).float(), fits)


def test_the_cut_of_fragments_does_not_show() -> None:
    """A bfloat16 average over two pieces of one parameter, with padding, is that of the whole one."""
    flat = nn.Parameter(torch.zeros(8))
    flat.data[7] = torch.nan
    segments = (Segment(0, 0, 4, 3), Segment(0, 4, 3, 0))
    cut = EMA(torch.optim.SGD([flat], lr=1.0), 3, dtype="bfloat16")
    cut.attach(Layout((Parameter("p", (7,), 0),), (Fragment(flat, segments, 0, (0,)),)))
    whole = nn.Parameter(torch.zeros(7))
    reference = EMA(torch.optim.SGD([whole], lr=1.0), 3, dtype="bfloat16")
    for number in range(5):
        whole.grad = torch.linspace(-1, 1, 7) * math.cos(number)
        flat.grad = torch.cat([whole.grad[3:], whole.grad[:3], torch.zeros(1)])
        reference.step()
        cut.step()
    found = cut.evaluation_weights(cut.layout.fragments[0])
    expected = reference.evaluation_weights(reference.layout.fragments[0])
    assert torch.equal(torch.cat([found[4:7], found[:4]]), expected)


@pytest.mark.parametrize(("arguments", "message"), [({"half_life": 0}, "half_life"), ({"dtype": "float16"}, "dtype")])
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMA(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **{"half_life": 1.0, **arguments})
