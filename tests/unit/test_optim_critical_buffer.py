"""The buffer of Critical Momenta: when it changes, where it lies, what it keeps and what is refused."""

from typing import Any

import pytest
import torch
from support.critical import gradients_of, parameters, step
from torch import nn

from lowland.optim import CriticalMomenta


def _snapshot(optimizer: CriticalMomenta) -> list[Any]:
    state = optimizer.state_dict()
    tensors = [{k: v.clone() for k, v in values.items()} for values in state["state"].values()]
    return [tensors, state["shared"], optimizer.priorities]


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_step_that_is_not_applied_changes_nothing(taken: int) -> None:
    params = parameters()
    optimizer = CriticalMomenta(params, lr=0.1, buffer_size=2)
    rows = gradients_of(10, taken + 2)
    for row in rows[:taken]:
        step(optimizer, params, list(row))
    before = _snapshot(optimizer)
    for p, gradient in zip(params, rows[taken], strict=True):
        p.grad = 1000 * gradient
    optimizer.prepare(optimizer.layout.gradients())
    optimizer.finish()
    after = _snapshot(optimizer)
    assert after[1:] == before[1:]
    for mine, other in zip(after[0], before[0], strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    step(optimizer, params, list(rows[taken + 1]))
    assert _snapshot(optimizer)[1] != before[1], "an applied one does"


def test_a_step_without_gradients_ranks_nothing() -> None:
    params = parameters()
    optimizer = CriticalMomenta(params, lr=0.1, priority="tensor", priority_decay=0.5)
    step(optimizer, params, list(gradients_of(11, 1)[0]))
    before = optimizer.priorities
    step(optimizer, params, [None, None, None])
    assert optimizer.priorities == before
    step(optimizer, params, [gradients_of(12, 1)[0][0], None, None])
    assert [len(kept) for kept in optimizer.priorities.values()] == [2, 1, 1]
    assert optimizer.priorities["0.1"] == before["0.1"]


def test_a_bfloat16_buffer_keeps_its_type_and_what_it_holds() -> None:
    params, copies = parameters(), parameters()
    optimizer = CriticalMomenta(params, lr=0.1, buffer_size=2, buffer_dtype="bfloat16")
    for row in gradients_of(13, 3):
        step(optimizer, params, list(row))
    restored = CriticalMomenta(copies, lr=0.1, buffer_size=2, buffer_dtype="bfloat16")
    restored.load_state_dict(optimizer.state_dict())
    for p, copy in zip(params, copies, strict=True):
        for slot in ("buffer_0", "buffer_1"):
            assert restored.state[copy][slot].dtype == torch.bfloat16
            assert torch.equal(restored.state[copy][slot], optimizer.state[p][slot])
        assert restored.state[copy]["exp_avg"].dtype == torch.float32


def test_the_buffer_lies_where_it_is_told_to() -> None:
    """On a device without memory, so that nothing but the place is tested."""
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    elsewhere = CriticalMomenta([p], lr=0.1, buffer_device="meta")
    elsewhere.create_state()
    assert {key: value.device.type for key, value in elsewhere.state[p].items()} == {
        **{f"buffer_{slot}": "meta" for slot in range(5)},
        **dict.fromkeys(("exp_avg", "exp_avg_sq", "step"), "cpu"),
    }
    beside = CriticalMomenta([q], lr=0.1)
    beside.create_state()
    elsewhere.load_state_dict(beside.state_dict())
    assert elsewhere.state[p]["buffer_4"].device.type == "meta"
    assert elsewhere.state[p]["exp_avg"].device.type == "cpu"


def test_metrics_say_how_full_the_buffer_is_and_who_got_in() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = CriticalMomenta([p], lr=0.1, buffer_size=2, priority_decay=1.0)
    assert optimizer.metrics() == {}
    found = []
    for size in (2.0, 2.0, 1.0):
        step(optimizer, [p], [torch.tensor([size])])
        found.append(tuple(optimizer.metrics().values()))
    assert found == [(0.5, 1.0), (1.0, 1.0), (1.0, 0.0)]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("variant", "adagrad"),
        ("buffer_size", 0),
        ("priority_decay", 1.5),
        ("kappa", -1.0),
        ("priority", "norm"),
        ("buffer_dtype", "float16"),
    ],
)
def test_what_cannot_be_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument}.*{value}"):
        CriticalMomenta([nn.Parameter(torch.zeros(1))], lr=0.1, **{argument: value})
