"""Directions, lines and statistics on cases whose values are known, and the loss of a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.corpus import prepared
from support.training import TORCH, config, outcome
from torch import nn

from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.landscape import (
    LoadedModel,
    barrier,
    filter_normalised,
    interpolated,
    match_weights,
    moved,
    permutation_spec,
    permuted,
    recompute_batch_norm,
)

WEIGHTS = {
    "matrix": torch.randn(4, 6, generator=torch.Generator().manual_seed(1)),
    "kernel": torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(2)),
    "bias": torch.ones(4),
    "count": torch.ones(2, 2, dtype=torch.int64),
}


def norms(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(1).norm(dim=1)


def test_filters_of_a_direction_are_as_long_as_the_weights():
    direction = filter_normalised(WEIGHTS, seed=0)
    assert direction.keys() == {"matrix", "kernel"}
    for name, way in direction.items():
        assert torch.allclose(norms(way), norms(WEIGHTS[name]), rtol=1e-5)
    again, other = filter_normalised(WEIGHTS, seed=0), filter_normalised(WEIGHTS, seed=1)
    assert torch.equal(again["kernel"], direction["kernel"])
    assert not torch.equal(other["kernel"], direction["kernel"])
    assert not filter_normalised({"zero": torch.zeros(2, 2)}, seed=0)["zero"].any()


def test_a_network_scaled_filter_by_filter_has_the_same_landscape():
    # A ReLU network: its second layer takes back what the first one's scale did.
    scales = torch.tensor([0.1, 1.0, 4.0, 20.0])
    plain = {"first": torch.randn(4, 6), "second": torch.randn(1, 4)}
    scaled = {"first": scales[:, None] * plain["first"], "second": plain["second"] / scales}
    x = torch.randn(5, 6)

    def output(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x @ weights["first"].T).relu() @ weights["second"].T

    first_only = [{"first": filter_normalised(weights, 3)["first"]} for weights in (plain, scaled)]
    there = [moved(w, [way], [0.7]) for w, way in zip((plain, scaled), first_only, strict=True)]
    assert torch.allclose(output(there[0]), output(there[1]), rtol=1e-4, atol=1e-5)


def test_moving_by_nothing_gives_the_weights_themselves():
    directions = [filter_normalised(WEIGHTS, seed) for seed in (0, 1)]
    assert all(tensor is WEIGHTS[name] for name, tensor in moved(WEIGHTS, directions, [0.0, 0.0]).items())
    there = moved(WEIGHTS, directions, [2.0, -1.0])
    assert torch.allclose(there["matrix"], WEIGHTS["matrix"] + 2 * directions[0]["matrix"] - directions[1]["matrix"])


def test_lines_and_barriers_by_hand():
    second = {name: 3 * tensor for name, tensor in WEIGHTS.items()}
    assert torch.allclose(interpolated(WEIGHTS, second, 0.25)["matrix"], 1.5 * WEIGHTS["matrix"])
    assert torch.equal(interpolated(WEIGHTS, second, 0.25)["count"], WEIGHTS["count"])
    assert interpolated(WEIGHTS, second, 1.0)["matrix"] is second["matrix"]
    assert barrier([0, 0.5, 1], [1.0, 5.0, 3.0]) == 3.0
    assert barrier([0, 0.25, 1], [1.0, 1.4, 3.0]) == 0.0
    with pytest.raises(ValueError, match=r"bias has shape \(4,\) in one network and nothing in the other"):
        interpolated(WEIGHTS, {name: t for name, t in WEIGHTS.items() if name != "bias"}, 0.5)


def test_statistics_are_those_of_the_weights_at_hand():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    batches = [torch.randn(4, 2, 5, 5) + index for index in range(3)]
    network.eval()
    recompute_batch_norm(network, network, batches)
    assert not network.training
    with torch.no_grad():
        seen = [network[0](batch) for batch in batches]
    assert torch.allclose(network[1].running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0), atol=1e-6)
    assert torch.allclose(network[1].running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0), atol=1e-6)
    # The second layer saw what the first gives when it normalises by each batch, not by what it had kept.
    network[:3].train()
    with torch.no_grad():
        deeper = [network[3](network[:3](batch)) for batch in batches]
    assert torch.allclose(network[4].running_mean, torch.stack([x.mean((0, 2, 3)) for x in deeper]).mean(0), atol=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("text") / "data")


def loaded(data: Path, folder: Path, changes: dict[str, Any], step: int | None = None) -> LoadedModel:
    return LoadedModel(config(data, **changes), str(folder / "checkpoints"), step, torch.device("cpu"))


SHORT = {"length": "6 steps", "evaluation": {"every": "3 steps"}, "checkpoints": {"every": "3 steps", "export": False}}


@pytest.mark.parametrize("average", [None, {"half_life": "2 steps"}], ids=["plain", "averaged"])
def test_the_middle_of_the_plane_is_the_loss_that_was_reported(data: Path, tmp_path: Path, average: Any) -> None:
    optimizer = {"optimizer": {"name": "adamw", "lr": 1e-2, "ema": average}}
    reported = outcome(data, tmp_path, {**TORCH, **SHORT, **optimizer}).values["eval/loss"]
    for step in (3, 6):
        model = loaded(data, tmp_path, {**TORCH, **SHORT, **optimizer}, step)
        assert model.step == step
        assert model.evaluate(model.weights)["eval/loss"] == pytest.approx(reported[step], rel=1e-6)
    assert loaded(data, tmp_path, {**TORCH, **SHORT, **optimizer}).step == 6


def test_worker_groups_have_weights_of_their_own(data: Path, tmp_path: Path) -> None:
    optimizer = {"name": "adamw", "lr": 1e-2, "diloco": {"every": 2, "groups": 2}}
    with pytest.raises(RecipeError, match=r"optimizer\.diloco\.groups = 2: a landscape is around one .* set it to 1"):
        loaded(data, tmp_path, {**TORCH, **SHORT, "optimizer": optimizer})


def test_permuted_weights_have_the_same_loss_and_no_barrier_once_matched(data: Path, tmp_path: Path) -> None:
    outcome(data, tmp_path, {**TORCH, **SHORT})
    model = loaded(data, tmp_path, {**TORCH, **SHORT})
    spec = permutation_spec(model.module)
    assert spec is not None
    other = permuted(model.weights, spec, spec.random(model.weights, 0))
    here = model.evaluate(model.weights)["eval/loss"]
    assert model.evaluate(other)["eval/loss"] == pytest.approx(here, rel=1e-5)
    middle = model.evaluate(interpolated(model.weights, other, 0.5))["eval/loss"]
    assert middle > here + 0.1
    back = permuted(other, spec, match_weights(spec, model.weights, other))
    losses = [model.evaluate(interpolated(model.weights, back, t))["eval/loss"] for t in (0, 0.5, 1)]
    assert barrier([0, 0.5, 1], losses) == pytest.approx(0, abs=1e-6)


def test_a_step_without_a_checkpoint_is_told(data: Path, tmp_path: Path) -> None:
    outcome(data, tmp_path, {**TORCH, **SHORT})
    with pytest.raises(DataError, match=r"no checkpoint of step 4; there are those of steps 3, 6"):
        loaded(data, tmp_path, {**TORCH, **SHORT}, 4)
    with pytest.raises(DataError, match="no checkpoint of any step; there are none"):
        loaded(data, tmp_path / "elsewhere", {**TORCH, **SHORT})
