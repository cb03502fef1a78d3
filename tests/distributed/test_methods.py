"""Methods compute the same at every world size and ZeRO stage: their statistics are of the global batch."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.full import full
from support.images import train_methods, trained_weights, write_digits
from support.processes import Ranks
from support.training import Outcome, states, worst_loss, zero
from support.vision import WITHOUT_NORM

pytestmark = pytest.mark.processes

Reference = Callable[[str], tuple[Outcome, Path]]
TORCH = {"sharding": {"engine": "torch"}}
REGULARISERS: list[dict[str, Any]] = [
    {"name": "vrex", "strength": 1},
    {"name": "irm", "strength": 1},
    {"name": "spectral_risk", "parameter": 0.5, "nu": 0.1},
    {"name": "weight_balancing", "beta": 0.9, "max_norm": 0.5},
    {
        "name": "constraints",
        "subject_to": [
            {"metric": "loss", "group": "g1", "at_most": 0.1},
            {"metric": "chance", "of_class": 2, "equals": 0.5},
        ],
        "multipliers": {"name": "nupi", "lr": 1, "kp": 2, "nu": 0.5},
    },
    {"name": "ceag", "start": "2 steps", "window": 4},
    {"name": "igb", "base_start": "1 steps", "base_end": "4 steps"},
]
RATIONALE = [*REGULARISERS, {"name": "rationale_invariance", "strength": 0.1, "momentum": 0.5}]
PRUNING: list[dict[str, Any]] = [
    {"name": "magnitude_pruning", "sparsity": 0.6, "rounds": 2, "dense": "2 steps", "rewind": "weights"},
    {"name": "demp", "strength": 0.1, "noise": 2.0, "every": "2 steps", "span": "100%"},
]
UNITS: list[dict[str, Any]] = [
    {
        "name": "magnitude_pruning",
        "structure": "units",
        "sparsity": 0.6,
        "rounds": 2,
        "dense": "2 steps",
        "rewind": "weights",
    },
]
CONFLICT_FREE = [{"name": "conflict_free"}, {"name": "label_noise", "rate": 0.3}]
COBALT = [{"name": "cobalt", "start": "2 steps", "least_share": 0.3}]
CROSS_SPLIT = [
    {"name": "label_noise", "rate": 0.3},
    {"name": "cross_split", "warmup": "2 steps", "ramp": "1 steps", "gamma": [0.6, 1.0], "gamma_until": ["2 steps"]},
]
AVERAGED = [CROSS_SPLIT[0], {**CROSS_SPLIT[1], "average": 0.8}]
METHODS = {
    "regularisers": REGULARISERS,
    "rationale": RATIONALE,
    "pruning": PRUNING,
    "units": UNITS,
    "conflict_free": CONFLICT_FREE,
    "cross_split": CROSS_SPLIT,
    "averaged": AVERAGED,
    "cobalt": COBALT,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "digits.parquet")


@pytest.fixture(scope="module")
def reference(digits: Path, one: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """In one process: four micro-batches, whose numbers are collected first."""

    @cache
    def trained(name: str) -> tuple[Outcome, Path]:
        folder = tmp_path_factory.mktemp(name)
        return one(train_methods, digits, folder, METHODS[name], TORCH)[0], folder

    return trained


@pytest.mark.parametrize(
    ("ranks", "methods", "changes"),
    [
        ("two", "rationale", TORCH),
        ("two", "rationale", zero(2)),
        ("two", "conflict_free", zero(2)),
        full("two", "conflict_free", TORCH),
        full("two", "cobalt", TORCH),
        full("two", "cobalt", zero(3)),
        full("four", "cobalt", zero(2)),
        full("two", "cross_split", TORCH),
        full("two", "cross_split", zero(2)),
        full("two", "cross_split", zero(3)),
        full("four", "cross_split", zero(1)),
        full("two", "averaged", zero(2)),
        full("two", "conflict_free", zero(3)),
        full("four", "rationale", TORCH),
        full("four", "regularisers", zero(3)),
        full("two", "rationale", zero(1)),
        full("two", "regularisers", zero(3)),
    ],
)
def test_trajectories_are_those_of_one_process(
    ranks: str,
    methods: str,
    changes: dict[str, Any],
    digits: Path,
    reference: Reference,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    alone, folder = reference(methods)
    ours = request.getfixturevalue(ranks)(train_methods, digits, tmp_path, METHODS[methods], changes)[0]
    assert worst_loss(ours.losses, alone.losses) < 1e-5
    for name, values in alone.values.items():
        if name.startswith("methods/"):
            assert ours.values[name][6] == pytest.approx(values[6], rel=1e-4, abs=1e-5), name
    before, after = trained_weights(folder), trained_weights(tmp_path)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("ranks", "changes"), [("two", zero(2)), full("two", TORCH), full("two", zero(1)), full("four", zero(2))]
)
def test_the_same_weights_and_units_are_pruned(
    ranks: str,
    changes: dict[str, Any],
    digits: Path,
    reference: Reference,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Up to a few weights, whose sizes differ by less than rounding from that at which pruning stops."""
    alone, folder = reference("pruning")
    ours = request.getfixturevalue(ranks)(train_methods, digits, tmp_path, METHODS["pruning"], changes)[0]
    assert worst_loss(ours.losses, alone.losses) < 1e-3
    assert ours.values["methods/demp/removed"] == alone.values["methods/demp/removed"]
    assert ours.values["methods/demp/removed"][6] > 0
    before, after = (states(where, 6)["prune_mask"] for where in (folder, tmp_path))
    weights = states(tmp_path, 6)["weight"]
    assert not any(bool(weights[name][mask == 0].any()) for name, mask in after.items())
    total = sum(mask.numel() for mask in before.values())
    assert sum(int((after[name] != mask).sum()) for name, mask in before.items()) <= total // 10_000


@pytest.mark.full
@pytest.mark.parametrize(
    ("ranks", "changes"),
    [("two", TORCH), ("two", zero(1)), ("two", zero(2)), ("two", zero(3)), ("four", zero(2)), ("four", zero(3))],
)
def test_the_smallest_units_are_pruned_wherever_they_lie(
    ranks: str,
    changes: dict[str, Any],
    digits: Path,
    reference: Reference,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    alone, folder = reference("units")
    ours = request.getfixturevalue(ranks)(train_methods, digits, tmp_path, UNITS, changes)[0]
    assert worst_loss(ours.losses, alone.losses) < 1e-5
    for name in ("removed", "smaller_flops"):
        key = f"methods/magnitude_pruning/{name}"
        assert ours.values[key] == alone.values[key]
    before, after = trained_weights(folder), trained_weights(tmp_path)
    for name, weight in before.items():
        assert torch.equal(after[name] == 0, weight == 0), name
        torch.testing.assert_close(after[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.full
@pytest.mark.parametrize("changes", [TORCH, zero(2)], ids=["torch", "zero-2"])
def test_ranks_share_the_scores_of_heads_and_neurons(
    changes: dict[str, Any], digits: Path, one: Ranks, two: Ranks, tmp_path: Path
) -> None:
    methods = [{"name": "optin", "flops": 0.5, "at": "3 steps", "images": 10}]
    model = {"model": WITHOUT_NORM["model"]}
    alone = one(train_methods, digits, tmp_path / "alone", methods, {**TORCH, **model})[0]
    ours = two(train_methods, digits, tmp_path / "ours", methods, {**changes, **model})[0]
    assert worst_loss(ours.losses, alone.losses) < 1e-5
    assert ours.values["methods/optin/removed_heads"] == alone.values["methods/optin/removed_heads"]
    before, after = trained_weights(tmp_path / "alone"), trained_weights(tmp_path / "ours")
    assert sum(int((weight == 0).sum()) for weight in before.values()) > 500
    for name, weight in before.items():
        assert torch.equal(after[name] == 0, weight == 0), name
