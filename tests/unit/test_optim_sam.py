"""SAM, ASAM, GSAM and F-SAM against values worked out by hand, in their limits, and in anyone's own loop."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowland.optim import EMA, SAM, TAM, frozen_statistics

Base = Callable[..., torch.optim.Optimizer]


class Bowl:
    """f = sum of curvature w^2 / 2, in float64."""

    def __init__(self, curvature: list[float], start: list[float]) -> None:
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self._curvature = torch.tensor(curvature, dtype=torch.float64)

    def named(self) -> list[tuple[str, nn.Parameter]]:
        return [("weight", self.w)]

    def closure(self, optimizer: torch.optim.Optimizer) -> Callable[[], float]:
        def evaluate() -> float:
            optimizer.zero_grad()
            loss = (self._curvature * self.w**2).sum() / 2
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()

        return evaluate


def trajectory(bowl: Bowl, lr: float, steps: int, **arguments: Any) -> tuple[list[list[float]], SAM]:
    optimizer = SAM(torch.optim.SGD(bowl.named(), lr=lr), 0.1, **arguments)
    found = []
    for _ in range(steps):
        optimizer.step(bowl.closure(optimizer))
        found.append(bowl.w.tolist())
    return found, optimizer


def test_sam_on_a_round_bowl_worked_out_by_hand() -> None:
    found, _ = trajectory(Bowl([1, 1], [1, 2]), 0.1, 2)
    assert found[0] == pytest.approx([0.8955278640, 1.7910557281], abs=1e-6)
    assert found[1] == pytest.approx([0.8015029417, 1.6030058834], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [(0.947763932, 0.0552786405), (0.8960566904, 0.0024483493)]),
        ({"adaptive": "named_weight"}, [(0.9453370968, 0.0959683554), (0.8933235558, 0.047391292)]),
        ({"gsam_alpha": 0.2}, [(0.950224521, 0.0543905097), (0.9004222629, 0.0003154939)]),
        (
            {"fsam_sigma": 1.0},
            [(0.947763932, 0.0552786405), (0.9005560892, 0.0776067822), (0.8559631546, 0.0886139202)],
        ),
    ],
    ids=["SAM", "ASAM", "GSAM", "F-SAM"],
)
def test_a_long_bowl_worked_out_by_hand(arguments: dict[str, Any], expected: list[tuple[float, float]]) -> None:
    found, optimizer = trajectory(Bowl([1, 10], [1, 0.2]), 0.05, len(expected), **arguments)
    for weights, values in zip(found, expected, strict=True):
        assert weights == pytest.approx(values, abs=1e-6)
    if "fsam_sigma" in arguments:
        (state,) = optimizer.state.values()
        assert state["fsam_gradient"].tolist() == pytest.approx([0.9853543628, 1.7473575586], abs=1e-6)


# Limits that equal a known method.


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def trained(make: Base, steps: int = 6, model: nn.Module | None = None) -> list[Tensor]:
    """Weights after steps that each see other data."""
    model = model or small_model()
    optimizer = make(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs, targets = torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator)

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> float:
            optimizer.zero_grad()
            loss = ((model(inputs) - targets) ** 2).mean()
            loss.backward()
            return loss.item()

        optimizer.step(closure)
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


BASES: list[Base] = [
    lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda params: torch.optim.AdamW(params, lr=1e-2),
    lambda params: TAM(params, lr=1e-2, weight_decay=0.1),
]


@pytest.mark.parametrize("base", BASES)
def test_limits_are_bitwise_known_methods(base: Base) -> None:
    plain, sam = trained(base), trained(lambda params: SAM(base(params), 0.1))
    assert not same(sam, plain)
    assert same(trained(lambda params: SAM(base(params), 0.0)), plain)
    assert same(trained(lambda params: SAM(base(params), 0.1, gsam_alpha=0.0, fsam_sigma=0.0)), sam)
    assert same(trained(lambda params: SAM(base(params), 0.1, every=7)), plain), "steps 1 to 6 are plain"
    assert same(trained(lambda params: EMA(SAM(base(params), 0.1), 5.0)), sam), "inside another wrapper too"


def test_every_perturbs_each_so_many_steps() -> None:
    bowl = Bowl([1, 10], [1, 0.2])
    optimizer = SAM(torch.optim.SGD(bowl.named(), lr=0.05), 0.1, every=3)
    evaluate, evaluations = bowl.closure(optimizer), []

    def counted() -> float:
        evaluations[-1] += 1
        return evaluate()

    for _ in range(7):
        evaluations.append(0)
        optimizer.step(counted)
    assert evaluations == [1, 1, 2, 1, 1, 2, 1]


def test_a_linear_loss_is_as_steep_everywhere() -> None:
    slope = torch.tensor([1.0, -2.0, 0.5])

    def after(make: Base) -> Tensor:
        w = nn.Parameter(torch.ones(3))
        optimizer = make([w])

        def closure() -> float:
            optimizer.zero_grad()
            (slope @ w).backward()  # type: ignore[no-untyped-call]
            return 0.0

        for _ in range(3):
            optimizer.step(closure)
        return w.detach()

    plain = after(lambda params: torch.optim.SGD(params, lr=0.1))
    for arguments in ({}, {"adaptive": "all"}, {"gsam_alpha": 0.5}, {"fsam_sigma": 1.0}):
        found = after(lambda params, a=arguments: SAM(torch.optim.SGD(params, lr=0.1), 0.3, **a))
        assert torch.allclose(found, plain, atol=1e-6), arguments


# The perturbation itself.


def perturbation(
    weights: list[Tensor], gradients: list[Tensor], names: list[str] | None = None, **a: Any
) -> list[Tensor]:
    params = [nn.Parameter(w.clone()) for w in weights]
    named = list(zip(names or [f"{i}.weight" for i in range(len(params))], params, strict=True))
    optimizer = SAM(torch.optim.SGD(named, lr=0.1), **a)
    for p, g in zip(params, gradients, strict=True):
        p.grad = g.clone()
    assert optimizer.advance()
    assert all(p.grad is None for p in params)
    return [p.detach() - w for p, w in zip(params, weights, strict=True)]


tensors = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(tensors, st.floats(1e-3, 10), st.integers(0, 2**31))
def test_it_has_length_rho_over_all_tensors_and_points_up(sizes: list[int], rho: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights, gradients = ([torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes] for _ in range(2))
    e, g = (torch.cat(x) for x in (perturbation(weights, gradients, rho=rho), gradients))
    assert float(e.norm()) == pytest.approx(rho, rel=1e-6)
    assert float(e @ g) == pytest.approx(rho * float(g.norm()), rel=1e-6)


@given(tensors, st.floats(1e-2, 1e2), st.integers(0, 2**31))
def test_asam_follows_a_rescaling_of_weights_that_keeps_the_function(
    sizes: list[int], factor: float, seed: int
) -> None:
    """w -> A w takes g to A^-1 g, and must take e to A e; SAM's does not follow."""
    generator = torch.Generator().manual_seed(seed)
    w, g = ([torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes] for _ in range(2))
    a = [torch.rand(n, generator=generator, dtype=torch.float64) * factor + 0.1 for n in sizes]
    moved_w, moved_g = [x * y for x, y in zip(a, w, strict=True)], [y / x for x, y in zip(a, g, strict=True)]
    arguments = {"rho": 0.5, "adaptive": "all", "eta": 0.0}
    before, after = perturbation(w, g, **arguments), perturbation(moved_w, moved_g, **arguments)
    assert torch.allclose(torch.cat(after), torch.cat([x * y for x, y in zip(a, before, strict=True)]), rtol=1e-5)


def test_asam_s_tensors_are_those_of_the_rule() -> None:
    """A tensor with T = 1 moves along its gradient; its gradient is in the norm all the same."""
    weights = [torch.full((2, 2), 3.0), torch.full((2,), 3.0), torch.full((2, 2), 3.0)]
    gradients = [torch.ones_like(w) for w in weights]
    names = ["norm.weight", "bias", "table"]
    for rule, scaled in {"all": "111", "none": "000", "matrices": "101", "named_weight": "100"}.items():
        t = [3.5 if flag == "1" else 1.0 for flag in scaled]
        norm = sum(x**2 * w.numel() for x, w in zip(t, weights, strict=True)) ** 0.5
        found = perturbation(weights, gradients, names, rho=0.1, adaptive=rule, eta=0.5)
        for e, x in zip(found, t, strict=True):
            assert torch.allclose(e, torch.full_like(e, 0.1 * x**2 / norm), rtol=1e-5), rule


def test_asam_by_name_wants_names() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r'named_parameters\(\).*adaptive="all"'):
        SAM(torch.optim.SGD([p], lr=0.1), adaptive="named_weight").advance()


def test_weights_come_back_to_the_bit() -> None:
    torch.manual_seed(3)
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.randn(1000).to(dtype))
        before = p.detach().clone()
        optimizer = SAM(torch.optim.SGD([p], lr=0.0), 0.37)
        p.grad = torch.randn(1000).to(dtype)
        assert optimizer.advance()
        assert not torch.equal(p, before)
        p.grad = torch.randn(1000).to(dtype)
        assert not optimizer.advance()
        assert torch.equal(p, before)


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("arguments", [{}, {"gsam_alpha": 0.2}, {"fsam_sigma": 1.0}, {"every": 2}], ids=str)
def test_a_gradient_that_is_not_finite_changes_nothing(arguments: dict[str, Any], bad: int) -> None:
    """The steps around it are as if it had never come."""

    def run(spoilt: set[int]) -> tuple[Tensor, dict[str, float]]:
        bowl = Bowl([1, 10], [1, 0.2])
        optimizer = SAM(torch.optim.SGD(bowl.named(), lr=0.05, momentum=0.9), 0.1, **arguments)
        evaluate, step, passes = bowl.closure(optimizer), 0, 0

        def closure() -> float:
            nonlocal passes
            loss = evaluate()
            if step in spoilt and passes == bad:
                assert bowl.w.grad is not None
                bowl.w.grad[1] = float("nan")
            passes += 1
            return loss

        for step in range(4 + len(spoilt)):  # noqa: B007 - read by the closure
            passes = 0
            optimizer.step(closure)
        return bowl.w.detach(), optimizer.shared_state()

    spoilt = run({1})
    whole = run(set())
    assert torch.equal(spoilt[0], whole[0])
    assert spoilt[1] == whole[1]


# In anyone's own loop.


def test_state_dict_round_trip_goes_on_bitwise() -> None:
    def make(params: Any) -> SAM:
        return SAM(torch.optim.AdamW(params, lr=1e-2), 0.1, fsam_sigma=1.0, every=2)

    whole = trained(make, steps=8)
    kept: list[SAM] = []

    def first(params: Any) -> SAM:
        kept.append(make(params))
        return kept[-1]

    model = small_model()
    trained(first, steps=8, model=model)
    saved = copy.deepcopy(kept[0].state_dict())
    again = make(model.named_parameters())
    again.load_state_dict(saved)

    def go_on(optimizer: SAM) -> list[Tensor]:
        for p in model.parameters():
            p.data.copy_(whole[[id(x) for x in model.parameters()].index(id(p))])
        for _ in range(3):
            optimizer.step(lambda: _quadratic(optimizer, model))
        return [p.detach().clone() for p in model.parameters()]

    assert same(go_on(again), go_on(kept[0]))


def _quadratic(optimizer: torch.optim.Optimizer, model: nn.Module) -> float:
    optimizer.zero_grad()
    loss = sum((p**3).sum() for p in model.parameters())
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def test_a_closure_returns_the_loss_before_the_step_and_advance_does_the_same() -> None:
    one, other = Bowl([1, 10], [1, 0.2]), Bowl([1, 10], [1, 0.2])
    first, second = (SAM(torch.optim.SGD(bowl.named(), lr=0.05), 0.1) for bowl in (one, other))
    before = one.closure(first)()
    assert first.step(one.closure(first)) == before
    again = True
    while again:
        other.closure(second)()
        again = second.advance()
    assert torch.equal(one.w, other.w)


def test_a_step_without_gradients_elsewhere_is_refused() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"call step\(closure\), or advance\(\)"):
        SAM(torch.optim.SGD([p], lr=0.1)).step()


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SAM(torch.optim.SGD([used, unused], lr=0.1), 0.1, gsam_alpha=0.1, fsam_sigma=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        assert unused.tolist() == [1, 1]
        loss = (used**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    for _ in range(3):
        optimizer.step(closure)
    assert unused.tolist() == [1, 1]
    assert max(used.tolist()) < 1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_passes_share_dropout_masks_and_the_first_alone_moves_statistics(momentum: float | None) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, momentum=momentum)
    reference = copy.deepcopy(norm)
    model = nn.Sequential(norm, nn.Dropout(0.5), nn.Linear(4, 1))
    inputs, masks = 10 * torch.randn(16, 4), []
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)

    def closure() -> float:
        optimizer.zero_grad()
        hidden = model[1](norm(inputs))
        masks.append(hidden == 0)
        loss = model[2](hidden).square().mean()
        loss.backward()
        return loss.item()

    for _ in range(3):
        optimizer.step(closure, model)
        reference(inputs)
    assert all(torch.equal(x, y) for x, y in zip(norm.buffers(), reference.buffers(), strict=True))
    assert len(masks) == 6
    assert [torch.equal(x, y) for x, y in pairwise(masks)] == [True, False, True, False, True]


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, lambda n: nn.InstanceNorm2d(n, track_running_stats=True)])
def test_frozen_statistics_see_the_batch_and_keep_nothing(layer: Callable[[int], nn.Module]) -> None:
    norm, inputs = layer(3), 5 + torch.randn(4, 3, 2, 2)
    expected = copy.deepcopy(norm)(inputs)
    before = copy.deepcopy(norm.state_dict())
    with frozen_statistics(norm):
        assert torch.equal(norm(inputs), expected)
    assert norm.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in norm.state_dict().items())
    norm(inputs)
    assert not torch.equal(norm.state_dict()["running_mean"], before["running_mean"])
    norm.eval()
    with frozen_statistics(norm):
        assert torch.equal(norm(inputs), norm(inputs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": -0.1}, "rho >= 0"),
        ({"eta": -0.1}, "eta >= 0"),
        ({"every": 0}, "every >= 1"),
        ({"adaptive": "biases"}, "none, all, matrices, named_weight"),
        ({"gsam_alpha": -1}, "gsam_alpha >= 0"),
        ({"fsam_sigma": -1}, "fsam_sigma >= 0"),
        ({"fsam_decay": 1.0}, r"fsam_decay in \[0, 1\)"),
        ({"per_rank": True, "gsam_alpha": 0.1}, "per_rank.*gsam_alpha"),
    ],
)
def test_bad_arguments_name_the_bound(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAM(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), **arguments)
