"""An image classifier's trajectory is the same at every world size and ZeRO stage, its running averages included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.full import full
from support.processes import Ranks
from support.training import Outcome, weights, worst_loss, zero
from support.vision import BATCH_NORM, TORCH, WITHOUT_NORM, buffers, interrupted, train

pytestmark = pytest.mark.processes

GLOBAL = {
    "model": {**BATCH_NORM["model"], "batch_norm": "global"},
    "batch": {"micro_batch": 16, "global_images": 32},
}
"""At two ranks one pass of 2 x 16 images, at one a pass of 32."""


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Outcome, Path]]:
    """In one process, with no library around it."""
    alone = {**GLOBAL, "batch": {"micro_batch": 32}}
    changes = {"without": WITHOUT_NORM, "micro_batch": BATCH_NORM, "global": alone}
    folders = {name: tmp_path_factory.mktemp(name) for name in changes}
    return {name: (train(folders[name], change), folders[name]) for name, change in changes.items()}


CASES = [
    ("two", "without", WITHOUT_NORM, TORCH),
    ("two", "without", WITHOUT_NORM, zero(2)),
    ("two", "micro_batch", BATCH_NORM, TORCH),
    ("two", "micro_batch", BATCH_NORM, zero(1)),
    ("two", "global", GLOBAL, TORCH),
    ("two", "global", GLOBAL, zero(2)),
    full("two", "without", WITHOUT_NORM, zero(0)),
    full("two", "without", WITHOUT_NORM, zero(1)),
    full("two", "without", WITHOUT_NORM, zero(3)),
    full("two", "micro_batch", BATCH_NORM, zero(0)),
    full("two", "micro_batch", BATCH_NORM, zero(3)),
    full("two", "global", GLOBAL, zero(0)),
    full("two", "global", GLOBAL, zero(1)),
    full("two", "global", GLOBAL, zero(3)),
    full("one", "micro_batch", BATCH_NORM, zero(2)),
    full("four", "without", WITHOUT_NORM, zero(2)),
    full("four", "micro_batch", BATCH_NORM, zero(2)),
    full("four", "global", {**GLOBAL, "batch": {"micro_batch": 8, "global_images": 32}}, zero(2)),
]


@pytest.mark.parametrize(("world", "name", "changes", "sharding"), CASES)
def test_the_same_training(
    request: pytest.FixtureRequest,
    world: str,
    name: str,
    changes: dict[str, Any],
    sharding: dict[str, Any],
    references: dict[str, tuple[Outcome, Path]],
    tmp_path: Path,
) -> None:
    ranks: Ranks = request.getfixturevalue(world)
    expected, folder = references[name]
    results = ranks(train, tmp_path, {**changes, **sharding})
    assert worst_loss(results[0].losses, expected.losses) < 2e-5
    assert results[0].values["eval/accuracy"] == expected.values["eval/accuracy"]
    for metric in ("eval/loss", "eval/calibration_error"):
        assert results[0].values[metric][12] == pytest.approx(expected.values[metric][12], rel=1e-4), metric
    for other in results:
        agreed = {key: value for key, value in other.result.metrics.items() if not key.startswith("perf/")}
        assert agreed == {key: results[0].result.metrics[key] for key in agreed}, "ranks must agree on the result"
    found = buffers(tmp_path, 12)
    assert found.keys() == buffers(folder, 12).keys()
    for key, value in buffers(folder, 12).items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_batch_norm_of_the_ranks_alone_is_another_training(
    two: Ranks, references: dict[str, tuple[Outcome, Path]], tmp_path: Path
) -> None:
    """What `global` is for."""
    apart = {**GLOBAL, **BATCH_NORM}
    losses = two(train, tmp_path, apart)[0].losses
    assert worst_loss(losses, references["global"][0].losses) > 1e-2


def test_a_resume_at_another_world_size_equals_an_uninterrupted_training(
    two: Ranks, references: dict[str, tuple[Outcome, Path]], tmp_path: Path
) -> None:
    expected, folder = references["micro_batch"]
    first = two(interrupted, tmp_path, {**BATCH_NORM, **zero(1)}, 5)[0]
    assert first.result.interrupted
    rest = train(tmp_path, BATCH_NORM)
    assert rest.result.resumed_from == 5
    assert worst_loss({**first.losses, **rest.losses}, expected.losses) < 2e-5
    for name, value in weights(folder, 12).items():
        torch.testing.assert_close(weights(tmp_path, 12)[name], value, rtol=1e-3, atol=1e-5, msg=name)
