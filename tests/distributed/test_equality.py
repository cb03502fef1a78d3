"""A trajectory is the same at every world size, ZeRO stage and cut of the batch."""

from pathlib import Path
from typing import Any

import pytest
from support.full import full
from support.processes import Ranks
from support.training import (
    TORCH,
    Outcome,
    batch,
    config,
    initial_weights,
    inside,
    outcome,
    weights,
    worst_loss,
    worst_update,
    zero,
)

pytestmark = pytest.mark.processes

WORLDS = ("one", "two", "four")
STAGES = (0, 1, 2, 3)
FEW = {"length": "20 steps", "evaluation": {"every": None}}
BF16 = {"model": {**config(Path()).model_dump(include={"model"})["model"], "dtype": "bfloat16"}, **FEW}


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """30 steps of AdamW in one process, no library around it."""
    return outcome(data, tmp_path_factory.mktemp("reference"), TORCH)


def ranks_of(request: pytest.FixtureRequest, world: str) -> Ranks:
    ranks: Ranks = request.getfixturevalue(world)
    return ranks


def assert_same(found: Outcome, reference: Outcome) -> None:
    assert worst_loss(found.losses, reference.losses) < 1e-5
    for name in ("eval/loss", "eval/perplexity", "eval/bits_per_byte"):
        assert found.values[name].keys() == {10, 20, 30}
        for step, value in reference.values[name].items():
            assert found.values[name][step] == pytest.approx(value, rel=1e-5), (name, step)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", WORLDS)
def test_zero_stages(
    request: pytest.FixtureRequest, world: str, stage: int, data: Path, reference: Outcome, tmp_path: Path
) -> None:
    results = ranks_of(request, world)(outcome, data, tmp_path, zero(stage))
    assert_same(results[0], reference)
    for other in results:
        agreed = {key: value for key, value in other.result.metrics.items() if not key.startswith("perf/")}
        assert agreed == {key: results[0].result.metrics[key] for key in agreed}, "ranks must agree on the result"


@pytest.mark.parametrize("world", ["two", "four"])
def test_engine_torch(
    request: pytest.FixtureRequest, world: str, data: Path, reference: Outcome, tmp_path: Path
) -> None:
    assert_same(ranks_of(request, world)(outcome, data, tmp_path, TORCH)[0], reference)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_optimizer(two: Ranks, stage: int, data: Path, reference: Outcome, tmp_path: Path) -> None:
    assert_same(two(outcome, data, tmp_path, zero(stage, offload_optimizer=True))[0], reference)


@pytest.mark.parametrize(
    ("changes", "micro_batch"),
    [
        (zero(0), 1),
        (zero(2), 4),
        (zero(3), 1),
        (TORCH, 4),
        full(zero(0), 4),
        full(zero(1), 1),
        full(zero(1), 4),
        full(zero(2), 1),
        full(zero(3), 4),
        full(TORCH, 1),
    ],
    ids=str,
)
def test_cut_into_micro_batches(
    two: Ranks, changes: dict[str, Any], micro_batch: int, data: Path, reference: Outcome, tmp_path: Path
) -> None:
    found = two(outcome, data, tmp_path, {**changes, **batch(micro_batch), **FEW})[0]
    short = outcome(data, tmp_path / "reference", {**TORCH, **FEW})
    assert worst_loss(found.losses, short.losses) < 1e-5


@pytest.mark.parametrize("gradient_dtype", [full("float32"), "bfloat16"])
def test_bf16_is_as_far_off_as_another_cut_of_the_batch(
    two: Ranks, gradient_dtype: str, data: Path, tmp_path: Path
) -> None:
    def losses(name: str, changes: dict[str, Any]) -> dict[int, float]:
        changes = {**BF16, **changes}
        if "stage" in changes["sharding"]:
            changes["sharding"] = {**changes["sharding"], "gradient_dtype": gradient_dtype}
        return two(outcome, data, tmp_path / name, changes)[0].losses

    anchor = losses("anchor", zero(2))
    noise = max(worst_loss(losses(f"cut {n}", {**zero(2), **batch(n)}), anchor) for n in (1, 4))
    assert 1e-5 < noise < 3e-2, "bf16 must be in use, and must not have gone astray"
    assert anchor[20] < 0.8 * anchor[1]
    for name, changes in {"0": zero(0), "1": zero(1), "3": zero(3), "torch": TORCH}.items():
        if name in ("0", "torch") and gradient_dtype == "float32":
            continue  # neither takes the type
        assert worst_loss(losses(name, changes), anchor) < 2 * noise, name


@pytest.mark.parametrize("scope", ["global", full("group"), full("tensor")])
def test_adatamw_is_exact_under_sharding(two: Ranks, scope: str, data: Path, tmp_path: Path) -> None:
    """The distance after 20 steps, relative to the update.

    Two cuts of the batch in one process are 2e-6 apart: Adam's first steps divide rounding by rounding.
    """
    changes = {**FEW, "optimizer": {"name": "adatamw", "lr": 2e-4, "scope": scope}}
    outcome(data, tmp_path / "whole", {**changes, **TORCH})
    expected, initial = weights(tmp_path / "whole", 20), initial_weights(config(data))
    for stage in STAGES:
        two(outcome, data, tmp_path / str(stage), {**changes, **zero(stage)})
        assert worst_update(weights(tmp_path / str(stage), 20), expected, initial) < 1e-5, stage


def test_the_same_method_per_fragment_is_another_method(two: Ranks, data: Path, tmp_path: Path) -> None:
    """What the layout is for: taken over whole fragments, the cosine is a different one."""
    changes = {**FEW, "optimizer": {"name": "adatamw", "lr": 2e-4, "scope": "tensor"}}
    outcome(data, tmp_path / "whole", {**changes, **TORCH})
    expected, initial = weights(tmp_path / "whole", 20), initial_weights(config(data))

    def naive(name: str, sharding: dict[str, Any]) -> float:
        two(inside, data, tmp_path / name, {**changes, **sharding}, "naive_adatamw")
        return worst_update(weights(tmp_path / name, 20), expected, initial)

    assert naive("torch", TORCH) < 1e-5, "on whole tensors both are the same method"
    assert naive("1", zero(1)) > 1e-2
    assert naive("3", zero(3)) > 1e-2
