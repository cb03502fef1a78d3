"""AdaTAMW against values worked out by hand, in its limits, and what it does with what torch hands it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowland.optim import TAM, AdaTAMW, Fragment, Layout, LayoutOptimizer, Segment

TURNING = ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0])
"""Gradients that turn by a right angle each step."""


def parameter(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def step(optimizer: TAM | AdaTAMW, *gradients: tuple[nn.Parameter, Any]) -> None:
    for p, gradient in gradients:
        p.grad = None if gradient is None else torch.as_tensor(gradient, dtype=p.dtype).reshape(p.shape)
    optimizer.step()


def test_trajectory_worked_out_by_hand() -> None:
    p = parameter(0.0, 0.0)
    optimizer = AdaTAMW([p], lr=1e-3)
    expected = [(-0.01581138, 0.0), (-0.03004875, -0.01581138), (-0.02867172, -0.03004875)]
    for gradient, theta in zip(TURNING, expected, strict=True):
        step(optimizer, (p, gradient))
        assert p.tolist() == pytest.approx(theta, abs=1e-8)
    state = optimizer.state[p]
    assert state["exp_avg_sq"].tolist() == pytest.approx([0.001998, 0.000999], abs=1e-7)
    assert optimizer.cosines["global"] == pytest.approx(-0.0668965, abs=1e-6)


def test_trajectory_of_tam_worked_out_by_hand() -> None:
    p = parameter(0.0, 0.0)
    optimizer = TAM([p], lr=0.1)
    for gradient, theta in zip(TURNING, [(-0.05, 0.0), (-0.095, -0.05), (-0.088845, -0.095)], strict=True):
        step(optimizer, (p, gradient))
        assert p.tolist() == pytest.approx(theta, abs=1e-6)
    assert optimizer.state[p]["exp_avg"].tolist() == pytest.approx([-0.061552, 0.45], abs=1e-6)


def test_smoothed_cosine_of_a_constant_gradient() -> None:
    p = parameter(0.0, 0.0, 0.0)
    optimizer = AdaTAMW([p], lr=1e-3)
    for smoothed in (0.0, 0.1, 0.19, 0.271, 0.3439):
        before = optimizer.state[p]["exp_avg"].clone() if optimizer.state else torch.zeros(3)
        step(optimizer, (p, [3.0, -2.0, 0.5]))
        assert optimizer.cosines["global"] == pytest.approx(smoothed, abs=1e-6)
        damping = (optimizer.state[p]["exp_avg"] - 0.9 * before) / p.grad
        assert damping.tolist() == pytest.approx([(1 + smoothed) / 2] * 3, abs=1e-5)


def test_weight_decay_is_decoupled_and_comes_first() -> None:
    plain, decayed = parameter(2.0, -1.0), parameter(2.0, -1.0)
    step(AdaTAMW([plain], lr=0.1), (plain, [1.0, 1.0]))
    step(AdaTAMW([decayed], lr=0.1, weight_decay=0.5), (decayed, [1.0, 1.0]))
    moved = plain.detach() - torch.tensor([2.0, -1.0])
    assert torch.allclose(decayed.detach(), torch.tensor([2.0, -1.0]) * 0.95 + moved)


def test_without_smoothing_and_momentum_it_is_rmsprop_with_half_gradients() -> None:
    """beta1 = 0 forgets the momentum, so the cosine lies between the last damped gradient and this one."""
    p, q = parameter(1.0, -2.0, 0.5), parameter(1.0, -2.0, 0.5)
    optimizer = AdaTAMW([p], lr=1e-2, betas=(0.0, 0.9), gamma=0.0, damping_floor=0.0)
    reference = torch.optim.RMSprop([q], lr=5e-3, alpha=0.9, eps=1e-8)
    for gradient in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, -1.0]):
        step(optimizer, (p, gradient))
        q.grad = torch.tensor(gradient)
        reference.step()
    assert torch.allclose(p, q, atol=1e-7)


def test_an_always_aligned_gradient_is_heavy_ball_divided_by_the_second_moment() -> None:
    """gamma = 0 and one direction give d = 1 from the second step on."""
    p = parameter(0.0)
    optimizer = AdaTAMW([p], lr=1.0, gamma=0.0, damping_floor=0.0, betas=(0.9, 0.0))
    momentum, theta = 0.0, 0.0
    for number in range(5):
        step(optimizer, (p, [2.0]))
        momentum = 0.9 * momentum + (0.5 if number == 0 else 1.0) * 2.0
        theta -= momentum / 2.0
    assert p.item() == pytest.approx(theta, rel=1e-6)


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_scopes_are_what_they_say(scope: str) -> None:
    torch.manual_seed(0)
    tensors = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(5))]
    optimizer = AdaTAMW([{"params": tensors[:2]}, {"params": tensors[2:]}], lr=1e-3, gamma=0.0, scope=scope)  # type: ignore[arg-type]
    first, second = ([torch.randn_like(p) for p in tensors] for _ in range(2))
    step(optimizer, *zip(tensors, first, strict=True))
    momenta = [optimizer.state[p]["exp_avg"].clone() for p in tensors]
    step(optimizer, *zip(tensors, second, strict=True))
    members = {
        "global": {"global": [0, 1, 2]},
        "group": {"0": [0, 1], "1": [2]},
        "tensor": {"0.0": [0], "0.1": [1], "1.0": [2]},
    }[scope]
    assert optimizer.cosines.keys() == members.keys()
    for key, indices in members.items():
        m, g = (torch.cat([tensors[i].reshape(-1) for i in indices]) for tensors in (momenta, second))
        assert optimizer.cosines[key] == pytest.approx(float(torch.cosine_similarity(m, g, dim=0)), abs=1e-6)


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
    st.integers(0, 2**31),
)
def test_the_tensor_cosine_ignores_each_tensor_s_scale(factors: list[float], seed: int) -> None:
    """So it may be taken from gradients before they are unscaled and clipped."""
    generator = torch.Generator().manual_seed(seed)
    gradients = [[torch.randn(n, generator=generator) for n in (1, 4, 7)] for _ in range(3)]
    plain, scaled = ([nn.Parameter(torch.zeros(n)) for n in (1, 4, 7)] for _ in range(2))
    optimizers = AdaTAMW(plain, lr=1e-3, scope="tensor"), AdaTAMW(scaled, lr=1e-3, scope="tensor")
    for round_ in gradients:
        step(optimizers[0], *zip(plain, round_, strict=True))
        step(optimizers[1], *zip(scaled, [f * g for f, g in zip(factors, round_, strict=True)], strict=True))
        for key, cosine in optimizers[0].cosines.items():
            assert optimizers[1].cosines[key] == pytest.approx(cosine, abs=1e-5)


def test_the_global_cosine_is_invariant_to_a_rotation_and_the_tensor_cosine_is_not() -> None:
    torch.manual_seed(1)
    gradients = [torch.randn(6) for _ in range(4)]
    rotation, _ = torch.linalg.qr(torch.randn(6, 6))

    def cosines(scope: str, turn: Tensor) -> dict[str, float]:
        halves = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))]
        optimizer = AdaTAMW(halves, lr=1e-3, scope=scope)  # type: ignore[arg-type]
        for gradient in gradients:
            step(optimizer, *zip(halves, (turn @ gradient).split(3), strict=True))
        return optimizer.cosines

    identity = torch.eye(6)
    assert cosines("global", rotation)["global"] == pytest.approx(cosines("global", identity)["global"], abs=1e-6)
    assert abs(cosines("tensor", rotation)["0.0"] - cosines("tensor", identity)["0.0"]) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_round_trip_goes_on_bitwise(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    gradients = [torch.randn(5) for _ in range(6)]
    whole, first = (nn.Parameter(torch.ones(5, dtype=dtype)) for _ in range(2))
    reference, before = AdaTAMW([whole], lr=1e-2), AdaTAMW([first], lr=1e-2)
    for gradient in gradients:
        step(reference, (whole, gradient))
    for gradient in gradients[:3]:
        step(before, (first, gradient))
    second = nn.Parameter(first.detach().clone())
    after = AdaTAMW([second], lr=0.5)
    after.load_state_dict(before.state_dict())
    assert after.state[second]["exp_avg"].dtype == torch.float32
    for gradient in gradients[3:]:
        step(after, (second, gradient))
    assert torch.equal(second, whole)
    assert after.cosines == reference.cosines


def test_missing_gradients_and_frozen_parameters_are_left_alone() -> None:
    used, unused, frozen = parameter(1.0), parameter(1.0), parameter(1.0)
    frozen.requires_grad_(False)
    optimizer = AdaTAMW([used, unused, frozen], lr=0.1, weight_decay=0.1)
    step(optimizer, (used, [1.0]), (unused, None))
    assert used.item() != 1.0
    assert unused.item() == frozen.item() == 1.0
    assert set(optimizer.state) == {used}


def test_groups_have_their_own_rates() -> None:
    slow, fast = parameter(0.0), parameter(0.0)
    optimizer = AdaTAMW([{"params": [slow]}, {"params": [fast], "lr": 1e-2}], lr=1e-3)
    step(optimizer, (slow, [1.0]), (fast, [1.0]))
    assert fast.item() == pytest.approx(10 * slow.item())


def test_zero_gradients_give_a_cosine_of_zero() -> None:
    p = parameter(1.0, 2.0)
    optimizer = AdaTAMW([p], lr=0.1)
    for _ in range(2):
        step(optimizer, (p, [0.0, 0.0]))
    assert optimizer.cosines == {"global": 0.0}
    assert p.tolist() == [1.0, 2.0]


def test_closure() -> None:
    p = parameter(3.0)
    optimizer = AdaTAMW([p], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert p.item() < 3.0


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("lr", -1e-3, "lr >= 0"),
        ("betas", (1.0, 0.9), r"betas in \[0, 1\)"),
        ("betas", (0.9, -0.1), r"betas in \[0, 1\)"),
        ("gamma", 1.0, r"gamma in \[0, 1\)"),
        ("eps", 0.0, "eps > 0"),
        ("damping_floor", -1.0, "damping_floor >= 0"),
        ("weight_decay", -0.1, "weight_decay >= 0"),
        ("scope", "layer", "global, group or tensor"),
        ("lr", math.nan, "lr >= 0"),
    ],
)
def test_bad_hyper_parameters_name_the_bound(name: str, value: Any, bound: str) -> None:
    with pytest.raises(ValueError, match=bound):
        AdaTAMW([parameter(1.0)], **{"lr": 1e-3, name: value})


def test_a_tensor_it_was_not_built_with_is_refused_without_a_layout() -> None:
    """As ZeRO does it: the groups' parameters are replaced by flat fragments."""
    optimizer = AdaTAMW([parameter(1.0, 2.0)], lr=1e-3)
    fragment = parameter(1.0)
    fragment.grad = torch.ones(1)
    optimizer.param_groups[0]["params"] = [fragment]
    with pytest.raises(RuntimeError, match="attach"):
        optimizer.step()


def test_a_sharded_layout_needs_prepare() -> None:
    p = parameter(1.0)
    optimizer = AdaTAMW([p], lr=1e-3)
    whole = Layout.whole([[("p", p)]])
    optimizer.attach(Layout(whole.parameters, whole.fragments, by_group=True))
    p.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match="prepare"):
        optimizer.step()


def test_what_is_prepared_is_forgotten_with_the_step() -> None:
    p = parameter(1.0)
    optimizer = AdaTAMW([p], lr=1e-3)
    layout = Layout.whole([[("p", p)]])
    optimizer.attach(layout)
    assert isinstance(optimizer, LayoutOptimizer)
    optimizer.prepare(iter([(layout.fragments[0].segments[0], p, torch.ones(1))]))
    optimizer.finish()
    assert optimizer.cosines == {}, "a step that is not applied changes nothing"
    step(optimizer, (p, [1.0]))
    assert optimizer.cosines == {"global": 0.0}


@given(st.data())
def test_any_cut_into_fragments_steps_like_whole_tensors(data: st.DataObject) -> None:
    """Parameters of one group, concatenated and cut anywhere, as ZeRO 1 and 2 cut them."""
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    total = sum(sizes)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, total - 1)), max_size=3)) - {total})
    scope = data.draw(st.sampled_from(["global", "group", "tensor"]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    start = torch.randn(total, generator=generator)
    gradients = [torch.randn(total, generator=generator) for _ in range(3)]

    whole = [nn.Parameter(x.clone()) for x in start.split(sizes)]
    reference = AdaTAMW([{"params": whole}], lr=1e-2, weight_decay=0.1, scope=scope)
    for gradient in gradients:
        step(reference, *zip(whole, gradient.split(sizes), strict=True))

    parts = [nn.Parameter(x.clone()) for x in start.tensor_split(cuts)]
    optimizer = AdaTAMW([{"params": parts}], lr=1e-2, weight_decay=0.1, scope=scope)
    optimizer.attach(_cut_layout(parts, sizes, cuts))
    for gradient in gradients:
        step(optimizer, *zip(parts, gradient.tensor_split(cuts), strict=True))
    expected = torch.cat([p.detach() for p in whole])
    assert torch.allclose(torch.cat([p.detach() for p in parts]), expected, atol=1e-6)
    assert list(optimizer.cosines.values()) == pytest.approx(list(reference.cosines.values()), abs=1e-6)


def _cut_layout(parts: list[nn.Parameter], sizes: list[int], cuts: list[int]) -> Layout:
    parameters = Layout.whole([[(f"0.{i}", torch.empty(size)) for i, size in enumerate(sizes)]]).parameters
    fragments = []
    for part, low in zip(parts, [0, *cuts], strict=True):
        segments, start = [], 0
        for index, size in enumerate(sizes):
            first, end = max(start, low), min(start + size, low + part.numel())
            if first < end:
                segments.append(Segment(index, first - low, end - first, first - start))
            start += size
        fragments.append(Fragment(part, tuple(segments), 0, tuple(range(len(sizes)))))
    return Layout(parameters, tuple(fragments))
