"""Critical Momenta and Critical Gradients against values worked out by hand, a plain loop, and in their limits."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.critical import Plain, gradients_of, parameters, step
from support.pretend import PretendRanks, cut, joined, piece_of, together
from torch import Tensor, nn

from lowland.optim import CriticalGradients, CriticalMomenta
from lowland.optim.conformance import Subject, conformance

METHODS = {"momenta": CriticalMomenta, "gradients": CriticalGradients}
VARIANTS = ("adam", "adamw", "sgd", "rmsprop")
PRIORITIES = ("tensor_norms", "global_norm", "tensor")
RISING_AND_FALLING = (1.0, 2.0, -1.0, 0.5, 3.0)


def scalar_run(optimizer: Any, p: nn.Parameter) -> list[tuple[float, dict[str, float], list[float]]]:
    """By step: the weight, its state, the priorities."""
    rows = []
    for gradient in RISING_AND_FALLING:
        step(optimizer, [p], [torch.tensor([gradient])])
        state = {key: float(value) for key, value in optimizer.state[p].items()}
        rows.append((p.item(), state, optimizer.priorities["global"]))
    return rows


def test_critical_momenta_worked_out_by_hand() -> None:
    p = nn.Parameter(torch.ones(1))
    rows = scalar_run(CriticalMomenta([p], lr=0.1, variant="adam", buffer_size=2, priority_decay=0.5), p)
    weights = [1, 0.2558631852, -0.0591992105, -0.1677401506, -0.3668844725]
    assert [row[0] for row in rows] == pytest.approx(weights, abs=1e-7)
    states = [row[1] for row in rows]
    assert [state["exp_avg"] for state in states] == pytest.approx([0, 0.2, 0.08, 0.122, 0.4098], abs=1e-7)
    seconds = [0, 0.00144, 0.00190096, 0.001967703, 0.002268015]
    assert [state["exp_avg_sq"] for state in states] == pytest.approx(seconds, abs=1e-9)
    buffers = [(1, 0), (1, 0.2), (0.08, 0.2), (0.08, 0.2), (0.4098, 0.2)]
    assert [(s["buffer_0"], s["buffer_1"]) for s in states] == [pytest.approx(pair, abs=1e-7) for pair in buffers]
    assert [row[2] for row in rows] == [[0.5], [0.25, 1], [0.5, 0.5], [0.25, 0.25], [1.5, 0.125]]


def test_critical_gradients_worked_out_by_hand() -> None:
    p = nn.Parameter(torch.ones(1))
    rows = scalar_run(CriticalGradients([p], lr=0.1, variant="adam", buffer_size=2, priority_decay=0.5), p)
    weights = [0.9000000010, 0.8082218895, 0.7281666556, 0.6482360987, 0.5621157001]
    assert [row[0] for row in rows] == pytest.approx(weights, abs=1e-7)
    p = nn.Parameter(torch.ones(1))
    optimizer = CriticalGradients([p], lr=0.1, variant="sgd", betas=(0.9, 0.0), buffer_size=2, priority_decay=0.5)
    assert [row[0] for row in scalar_run(optimizer, p)] == pytest.approx(
        [0.9, 0.51, 0.109, -0.3519, -1.11671], abs=1e-6
    )


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_like_a_plain_loop(method: str, variant: str, priority: str) -> None:
    params = parameters(torch.Generator().manual_seed(5))
    plain = Plain(method, variant, priority, [p.detach() for p in params])
    optimizer = METHODS[method](
        [{"params": params[:1]}, {"params": params[1:]}],
        lr=0.01,
        variant=variant,  # type: ignore[arg-type]
        betas=(0.9, 0.99),
        weight_decay=0.1,
        buffer_size=3,
        priority_decay=0.8,
        kappa=0.7,
        priority=priority,  # type: ignore[arg-type]
    )
    for gradients in gradients_of(6, 15):
        step(optimizer, params, list(gradients))
        plain.step(gradients, lr=0.01, decay=0.1, kappa=0.7, size=3, beta=0.8)
        for p, expected in zip(params, plain.weights, strict=True):
            assert torch.allclose(p.double(), expected, atol=1e-6, rtol=1e-6)
    found = list(optimizer.priorities.values())
    assert found == [pytest.approx(keys, rel=1e-6) for keys in plain.keys[: len(found)]]
    accepted = {tuple(keys) for keys in plain.keys}
    assert len(accepted) == (3 if priority == "tensor" else 1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_without_a_buffer_it_is_torch_s_optimizer_to_the_bit(method: str, variant: str) -> None:
    params, others = (parameters(torch.Generator().manual_seed(7)) for _ in range(2))
    arguments: dict[str, Any] = {"lr": 0.03, "weight_decay": 0.1, "foreach": True}
    base = {
        "adam": lambda: torch.optim.Adam(others, betas=(0.9, 0.99), **arguments),
        "adamw": lambda: torch.optim.AdamW(others, betas=(0.9, 0.99), **arguments),
        "sgd": lambda: torch.optim.SGD(others, momentum=0.9, **arguments),
        "rmsprop": lambda: torch.optim.RMSprop(others, momentum=0.9, alpha=0.99, **arguments),
    }[variant]()
    del arguments["foreach"]
    optimizer = METHODS[method](params, variant=variant, betas=(0.9, 0.99), kappa=0.0, **arguments)  # type: ignore[arg-type]
    for gradients in gradients_of(8, 10):
        step(optimizer, params, list(gradients))
        step(base, others, list(gradients))
    assert all(torch.equal(p, other) for p, other in zip(params, others, strict=True))
    assert not any(name.startswith("buffer") for name in optimizer.state[params[0]]), "nothing is kept for nothing"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_step_of_critical_momenta_moves_nothing_but_by_decoupled_decay(variant: str) -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = CriticalMomenta(params, lr=0.1, variant=variant, weight_decay=0.5)  # type: ignore[arg-type]
    step(optimizer, params, list(gradients_of(9, 1)[0]))
    factor = 1 - 0.1 * 0.5 if variant == "adamw" else 1.0
    assert all(torch.equal(p, factor * b) for p, b in zip(params, before, strict=True))


def test_with_little_decay_the_largest_stay_and_with_much_the_latest() -> None:
    gradients = [torch.full((1,), size) for size in (5.0, 4.0, 3.0, 2.0, 1.0)]
    for decay, expected in ((1.0, {5.0, 4.0}), (1e-6, {1.0, 2.0})):
        p = nn.Parameter(torch.zeros(1))
        optimizer = CriticalGradients([p], lr=0.1, buffer_size=2, priority_decay=decay)
        for gradient in gradients:
            step(optimizer, [p], [gradient])
        assert {float(optimizer.state[p][f"buffer_{slot}"]) for slot in range(2)} == expected


def test_what_ranks_is_named() -> None:
    """Gradients of the norms 5 and 2."""
    expected = {"tensor_norms": {"global": [7.0]}, "global_norm": {"global": [math.sqrt(29)]}}
    expected["tensor"] = {"first": [5.0], "second": [2.0]}
    for priority, keys in expected.items():
        params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
        named = zip(("first", "second"), params, strict=True)
        optimizer = CriticalMomenta(named, lr=0.1, priority_decay=1.0, priority=priority)  # type: ignore[arg-type]
        step(optimizer, params, [torch.tensor([3.0, 4.0]), torch.tensor([-2.0])])
        assert optimizer.priorities == {name: pytest.approx(values, rel=1e-12) for name, values in keys.items()}


def test_priorities_are_those_before_clipping_and_the_buffer_holds_what_was_clipped() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = CriticalGradients([p], lr=0.1, priority_decay=1.0)
    p.grad = torch.tensor([3.0, 4.0])
    optimizer.prepare(optimizer.layout.gradients())
    p.grad.mul_(0.1)
    optimizer.step()
    optimizer.finish()
    assert optimizer.priorities == {"global": [5.0]}
    assert optimizer.state[p]["buffer_0"].tolist() == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("momenta", {"buffer_dtype": "bfloat16"}),
        ("momenta", {"variant": "adamw"}),
        ("gradients", {"priority": "tensor", "variant": "adam"}),
    ],
)
def test_the_suite_passes_in_other_forms_than_the_tables(method: str, changes: dict[str, Any]) -> None:
    subject = Subject(method, METHODS[method], {"lr": 2e-2, **changes})
    assert [f"{r.check}: {r.reason}" for r in conformance(subject) if not r.passed] == []


@given(st.data())
def test_any_cut_over_ranks_steps_like_whole_tensors(data: st.DataObject) -> None:
    """Laid one after the other and cut anywhere, as ZeRO 1 and 2 cut them; padding is not a number."""
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    size, total = data.draw(st.integers(1, 3)), sum(sizes)
    bounds = [0, *sorted(data.draw(st.lists(st.integers(0, total), min_size=size - 1, max_size=size - 1))), total]
    arguments: dict[str, Any] = {"priority": data.draw(st.sampled_from(PRIORITIES)), "buffer_size": 2}
    method = METHODS[data.draw(st.sampled_from(list(METHODS)))]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    start = [torch.randn(n, generator=generator) for n in sizes]
    gradients = [[torch.randn(n, generator=generator) for n in sizes] for _ in range(5)]

    whole = {f"0.{index}": nn.Parameter(x.clone()) for index, x in enumerate(start)}
    reference = method(whole.values(), lr=1e-2, weight_decay=0.1, **arguments)
    for row in gradients:
        step(reference, list(whole.values()), list(row))

    def rank(ranks: PretendRanks) -> tuple[Tensor, dict[str, list[float]]]:
        flat, layout = cut(dict(zip(whole, start, strict=True)), bounds, ranks)
        optimizer = method([flat], lr=1e-2, weight_decay=0.1, **arguments)
        optimizer.attach(layout)
        for row in gradients:
            step(optimizer, [flat], [piece_of(row, bounds, ranks.rank)])
        return flat.detach(), optimizer.priorities

    found = together(size, rank)
    expected = torch.cat([p.detach() for p in whole.values()])
    assert torch.allclose(joined([flat for flat, _ in found]), expected, rtol=0, atol=1e-7)
    for _, priorities in found:
        assert priorities == {name: pytest.approx(kept, rel=1e-6) for name, kept in reference.priorities.items()}
