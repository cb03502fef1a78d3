"""SAM, ASAM, their relatives and Lookbehind are the same at every ZeRO stage and world size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.ascents import SCALES, own_loop, own_perturbation
from support.full import full
from support.processes import Ranks
from support.training import (
    TORCH,
    batch,
    config,
    initial_weights,
    inside,
    interrupted,
    outcome,
    states,
    weights,
    worst_update,
    zero,
)

pytestmark = pytest.mark.processes

Weights = dict[str, torch.Tensor]

FEW = {"length": "20 steps", "evaluation": {"every": None}, "log_every": 20}
METHODS: dict[str, dict[str, Any]] = {
    "sam": {"sam": {"rho": 0.1}},
    "asam": {"sam": {"rho": 0.5, "adaptive": "named_weight"}},
    "gsam": {"sam": {"rho": 0.1, "gsam_alpha": 0.1}},
    "fsam": {"sam": {"rho": 0.1, "fsam_sigma": 1.0, "every": 2}},
    "lookbehind": {"lookbehind": {"rho": 0.1, "k": 2}},
    "lookbehind asam": {"lookbehind": {"rho": 0.5, "k": 2, "alpha": 0.5, "adaptive": "all"}},
}
STAGES = [
    *(("sam", 1), ("sam", 3), ("asam", 3), ("lookbehind", 2)),
    *(full("sam", 0), full("sam", 2), full("asam", 1), full("lookbehind", 0)),
    *(full("lookbehind", 1), full("lookbehind", 3)),
]


def sgd(method: str) -> dict[str, Any]:
    """A method around SGD, which does not amplify rounding as Adam does."""
    return {"optimizer": {"name": "sgd", "lr": 0.2, **METHODS[method]}}


def bf16(data: Path) -> dict[str, Any]:
    """The changes that round the model's weights to bf16."""
    return {"model": {**config(data).model_dump(include={"model"})["model"], "dtype": "bfloat16"}}


@pytest.fixture(scope="module")
def initial(data: Path) -> Weights:
    """The weights before the first step."""
    return initial_weights(config(data))


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """Weights after 20 steps in one process, by method, and those of SGD alone."""
    found = {}
    plain = {"optimizer": {"name": "sgd", "lr": 0.2}}
    for name, changes in {"sgd": plain, **{method: sgd(method) for method in METHODS}}.items():
        folder = tmp_path_factory.mktemp("one")
        outcome(data, folder, {**FEW, **TORCH, **changes})
        found[name] = weights(folder, 20)
    return found


@pytest.mark.parametrize(("method", "stage"), STAGES)
def test_zero_stages(
    two: Ranks, method: str, stage: int, data: Path, expected: dict[str, Weights], initial: Weights, tmp_path: Path
) -> None:
    two(outcome, data, tmp_path, {**FEW, **sgd(method), **zero(stage)})
    assert worst_update(weights(tmp_path, 20), expected[method], initial) < 1e-5


def test_every_method_is_one_of_its_own(expected: dict[str, Weights], initial: Weights) -> None:
    """Else the comparisons here would compare nothing."""
    for first, one in expected.items():
        for second, other in expected.items():
            assert first == second or worst_update(one, other, initial) > 1e-2, (first, second)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("asam", zero(2, offload_optimizer=True)),
        ("gsam", zero(2, offload_optimizer=True)),
        full("gsam", zero(3, offload_optimizer=True)),
        ("gsam", zero(1)),
        ("fsam", zero(3)),
        full("lookbehind", zero(3, offload_optimizer=True)),
        ("lookbehind asam", {**zero(2), **batch(1)}),
        ("asam", {**zero(0), **batch(4)}),
        ("sam", {**TORCH, **batch(1)}),
    ],
    ids=str,
)
def test_offloaded_accumulated_and_clipped(
    two: Ranks,
    method: str,
    changes: dict[str, Any],
    data: Path,
    expected: dict[str, Weights],
    initial: Weights,
    tmp_path: Path,
) -> None:
    """Gradients are clipped in all cases; embedding and head are tied."""
    two(outcome, data, tmp_path, {**FEW, **sgd(method), **changes})
    assert worst_update(weights(tmp_path, 20), expected[method], initial) < 1e-5


@pytest.mark.full
def test_around_adamw_it_is_as_far_off_as_another_cut_of_the_batch(
    two: Ranks, data: Path, initial: Weights, tmp_path: Path
) -> None:
    """Adam's first steps divide rounding by rounding, in one process too."""
    changes = {**FEW, "optimizer": {"name": "adamw", "lr": 1e-3, **METHODS["sam"]}}
    outcome(data, tmp_path / "whole", {**changes, **TORCH})
    whole = weights(tmp_path / "whole", 20)
    noise = []
    for size in (1, 4):
        outcome(data, tmp_path / f"cut {size}", {**changes, **TORCH, **batch(size)})
        noise.append(worst_update(weights(tmp_path / f"cut {size}", 20), whole, initial))
    assert max(noise) < 1e-4
    for stage in (1, 3):
        two(outcome, data, tmp_path / str(stage), {**changes, **zero(stage)})
        assert worst_update(weights(tmp_path / str(stage), 20), whole, initial) < 4 * max(noise), stage


@pytest.mark.parametrize(("method", "stage"), [("fsam", 2), full("lookbehind", 3), full("fsam", 0)])
def test_resumed_bitwise(two: Ranks, method: str, stage: int, data: Path, tmp_path: Path) -> None:
    changes = {**FEW, "length": "9 steps", "log_every": 1, **sgd(method), **zero(stage)}
    whole = two(outcome, data, tmp_path / "whole", changes)[0]
    first, second = two(interrupted, data, tmp_path / "parts", changes, 5)[0]
    assert {**first.losses, **second.losses} == whole.losses
    reference, found = states(tmp_path / "whole", 9), states(tmp_path / "parts", 9)
    assert found.keys() == reference.keys()
    for state, tensors in reference.items():
        assert all(torch.equal(found[state][name], tensor) for name, tensor in tensors.items()), state


SECOND = [("sam", {11}, zero(3)), ("sam", {11}, TORCH), *(full("sam", {11}, zero(stage)) for stage in (0, 1, 2))]
OTHERS = [
    ("sam", {8}, zero(0)),
    ("lookbehind", {16}, zero(3)),
    full("sam", {8}, zero(3)),
    full("lookbehind", {16}, zero(0)),
]


@pytest.mark.parametrize(("method", "calls", "sharding"), SECOND + OTHERS, ids=str)
def test_a_pass_that_is_not_finite_skips_the_step(
    two: Ranks, method: str, calls: set[int], sharding: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """Of the third step, two micro-batches a pass: in the first pass, in the second, or in the middle of three."""
    assert_skipped(two, method, calls, sharding, data, tmp_path)


@pytest.mark.parametrize("stage", [full(0), full(1), 2, full(3)])
def test_in_bf16_too(two: Ranks, stage: int, data: Path, tmp_path: Path) -> None:
    assert_skipped(two, "sam", {11}, {**zero(stage), **bf16(data)}, data, tmp_path)


def assert_skipped(
    two: Ranks, method: str, calls: set[int], sharding: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """The weights that the model has are seen in its evaluations, the masters in its checkpoints."""
    changes = {
        **sgd(method),
        **sharding,
        "length": "4 steps",
        "evaluation": {"every": "1 steps"},
        "checkpoints": {"every": "1 steps", "export": False, "keep_last": 9},
        "nonfinite": {"policy": "skip"},
    }
    found, _ = two(inside, data, tmp_path, changes, "not_finite", "gradient", calls, 1)
    assert found.result.skipped == 1
    assert found.losses.keys() == {1, 2, 4}
    losses = found.values["eval/loss"]
    assert losses[3] == losses[2]
    assert losses[4] < losses[3]
    before, after = weights(tmp_path, 2), weights(tmp_path, 3)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("stage", [full(0), full(1), 2, 3])
def test_bf16_says_what_rounding_leaves_of_the_perturbation(two: Ranks, stage: int, data: Path, tmp_path: Path) -> None:
    changes = {**sgd("sam"), **zero(stage), **bf16(data), "length": "3 steps", "evaluation": {"every": None}}
    one, other = two(outcome, data, tmp_path, {**changes, "log_every": 1})
    ratio, cosine = (one.values[f"optimizer/shift_{name}"][3] for name in ("ratio", "cosine"))
    assert 1 < ratio < 2
    assert 0.5 < cosine < 1
    assert other.result.metrics["optimizer/shift_ratio"] == one.result.metrics["optimizer/shift_ratio"]


def test_per_rank_each_perturbs_by_its_own_gradient(two: Ranks) -> None:
    w = torch.tensor([1.0, 0.5])
    own = [scale * w for scale in SCALES]
    second = sum(scale * (w + 0.2 * g / g.norm()) for scale, g in zip(SCALES, own, strict=True))
    for found in two(own_perturbation):
        assert torch.allclose(found, w - 0.1 * second, atol=1e-6)


def test_per_rank_is_the_same_at_stage_0(
    two: Ranks, data: Path, expected: dict[str, Weights], initial: Weights, tmp_path: Path
) -> None:
    changes = {**FEW, "optimizer": {"name": "sgd", "lr": 0.2, "sam": {"rho": 0.1, "per_rank": True}}}
    two(outcome, data, tmp_path / "torch", {**changes, **TORCH})
    two(outcome, data, tmp_path / "zero", {**changes, **zero(0)})
    found = weights(tmp_path / "torch", 20)
    assert worst_update(weights(tmp_path / "zero", 20), found, initial) < 1e-5
    assert worst_update(expected["sam"], found, initial) > 1e-2


@pytest.mark.parametrize("name", [full("asam"), "gsam", "lookbehind"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_own_loops_on_several_ranks(two: Ranks, kind: str, name: str) -> None:
    alone = own_loop("alone", name)
    for found in two(own_loop, kind, name):
        assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(found, alone, strict=True))
