"""Optimizers with several passes in the training loop: masks, statistics, the loss shown, and what recipes refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.corpus import prepared
from support.training import LLAMA, TORCH, config, outcome
from torch import nn

from lowland.trainers.estimate import optimizer_memory
from lowland.trainers.models import CausalLMLoss

SHORT = {"length": "4 steps", "evaluation": {"every": None}, **TORCH}
DROPOUT = {"model": {"config": {**LLAMA, "attention_dropout": 0.5}}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("text") / "data")


def sgd(**around: Any) -> dict[str, Any]:
    return {"optimizer": {"name": "sgd", "lr": 0.1, **around}}


def test_all_passes_of_a_step_draw_the_same_dropout_masks(data: Path, tmp_path: Path) -> None:
    """Unperturbed, the second pass is the first: with other masks it would be another training."""
    plain = outcome(data, tmp_path / "plain", {**SHORT, **DROPOUT, **sgd()}).losses
    again = outcome(data, tmp_path / "again", {**SHORT, **DROPOUT, **sgd(sam={"rho": 0.0})}).losses
    assert again == plain
    assert outcome(data, tmp_path / "none", {**SHORT, **sgd()}).losses != plain, "dropout must be in use"


@contextmanager
def batch_norm(found: list[nn.BatchNorm1d]) -> Iterator[None]:
    """The model's loss passes through a BatchNorm that changes nothing of it, and that `found` gets."""
    plain = CausalLMLoss.forward

    def forward(module: CausalLMLoss, *arguments: Any, **keywords: Any) -> torch.Tensor:
        if "seen" not in module._modules:
            module.add_module("seen", nn.BatchNorm1d(1, affine=False))
            found.append(module.seen)  # type: ignore[arg-type]
        loss = plain(module, *arguments, **keywords)
        module.seen(loss.detach().reshape(1, 1) * torch.ones(2, 1))  # type: ignore[operator]
        return loss

    CausalLMLoss.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        CausalLMLoss.forward = plain  # type: ignore[method-assign]


def test_running_statistics_take_the_first_pass_alone(data: Path, tmp_path: Path) -> None:
    found: list[nn.BatchNorm1d] = []
    for name, around in {"plain": {}, "lookbehind": {"lookbehind": {"rho": 10.0, "k": 3}}}.items():
        with batch_norm(found):
            outcome(data, tmp_path / name, {**SHORT, "length": "1 steps", **sgd(**around)})
    plain, norm = found
    assert all(torch.equal(x, y) for x, y in zip(norm.buffers(), plain.buffers(), strict=True))
    assert norm.track_running_stats
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) >= 4, "the micro-batches of a pass were seen"


def test_the_loss_shown_is_that_before_the_step(data: Path, tmp_path: Path) -> None:
    plain = outcome(data, tmp_path / "plain", {**SHORT, **sgd()}).losses
    for name, around in {"sam": {"rho": 10.0}, "lookbehind": {"rho": 10.0}}.items():
        found = outcome(data, tmp_path / name, {**SHORT, **sgd(**{name: around})}).losses
        assert found[1] == plain[1]
        assert found[2] != plain[2]


def test_sam_and_lookbehind_exclude_each_other(data: Path) -> None:
    with pytest.raises(ValidationError, match=r"sam and lookbehind exclude each other.*remove one"):
        config(data, **sgd(sam={}, lookbehind={}))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_per_rank_needs_whole_weights(data: Path, stage: int) -> None:
    changes = sgd(sam={"per_rank": True})
    with pytest.raises(ValidationError, match=rf"optimizer\.sam\.per_rank.*sharding\.stage: {stage}.*engine: torch"):
        config(data, **changes, sharding={"stage": stage})
    config(data, **changes, sharding={"stage": 0})
    config(data, **changes, **TORCH)


@pytest.mark.parametrize("name", ["gsam_alpha", "fsam_sigma"])
def test_per_rank_goes_with_sam_and_asam_alone(data: Path, name: str) -> None:
    with pytest.raises(ValidationError, match=rf"per_rank: true.*{name}: 0.5"):
        config(data, **sgd(sam={"per_rank": True, name: 0.5}), **TORCH)


@pytest.mark.parametrize(
    ("around", "state", "step"),
    [
        ({}, 4, 0),
        ({"sam": {}}, 4, 4),
        ({"sam": {"gsam_alpha": 0.1}}, 4, 8),
        ({"sam": {"fsam_sigma": 1.0}}, 8, 8),
        ({"lookbehind": {"k": 3}}, 4, 16),
        ({"lookbehind": {"k": 3, "alpha": 0.5}}, 4, 12),
    ],
    ids=str,
)
def test_the_estimate_counts_what_is_held_between_passes(
    data: Path, around: dict[str, Any], state: float, step: float
) -> None:
    memory = optimizer_memory(config(data, **sgd(**around)).optimizer)
    assert memory.state == state
    assert memory.passes == step
