"""Measures on cases whose values are known."""

import math

import pytest
import torch
from torch import nn

from lowland.trainers.measures import (
    ForgettingCounts,
    GroupTotals,
    centred,
    cka,
    crossings,
    difficulty_bins,
    effective_rank,
    el2n,
    kernel_alignment,
    last_layer,
    ntk,
    participation_rank,
    projected_ntk,
    sam_sharpness,
    target_alignment,
    top_eigenvalue,
)
from lowland.trainers.world import World

ALONE = World.current(torch.device("cpu"))


def quadratic(eigenvalues: list[float], seed: int = 0):
    """x^T A x / 2 with these eigenvalues, the parameter it is of, and A."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    matrix = turn @ torch.diag(torch.tensor(eigenvalues)) @ turn.T
    x = torch.randn(size, generator=generator).requires_grad_()
    return lambda: x @ matrix @ x / 2, x, matrix


@pytest.mark.parametrize("eigenvalues", [[5.0, 1.0, 0.5, -2.0], [3.0] * 4, [0.0, 0.0, -4.0, -1.0]])
def test_the_extremes_of_a_quadratic_are_its_eigenvalues(eigenvalues):
    loss, x, _ = quadratic(eigenvalues)
    found = top_eigenvalue(loss, [x], iterations=4, world=ALONE)
    assert found.largest == pytest.approx(max(eigenvalues), abs=1e-4)
    assert found.smallest == pytest.approx(min(eigenvalues), abs=1e-4)


def test_few_iterations_come_close_from_below():
    loss, x, _ = quadratic([100.0, *(0.5 + i / 100 for i in range(60))])
    estimates = [top_eigenvalue(loss, [x], iterations=k, world=ALONE).largest for k in (1, 2, 3)]
    assert estimates == sorted(estimates)
    assert estimates[-1] == pytest.approx(100, rel=1e-3)


def test_a_start_of_nothing_is_refused():
    loss, x, _ = quadratic([1.0, 2.0])
    with pytest.raises(ValueError, match="iterations >= 1"):
        top_eigenvalue(loss, [x], iterations=0, world=ALONE)


@pytest.mark.parametrize("rho", [0.0, 0.3, 2.0])
def test_the_sharpness_of_a_quadratic(rho):
    loss, x, matrix = quadratic([4.0, 2.0, 1.0])
    before = x.detach().clone()
    found = sam_sharpness(loss, [x], rho=rho, world=ALONE)
    g = matrix @ before
    assert found == pytest.approx(float(rho * g.norm() + rho**2 / 2 * (g @ matrix @ g) / g.square().sum()), rel=1e-5)
    assert torch.equal(x, before)


def test_cka_does_not_see_rotation_scale_or_shift():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 6, generator=generator)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    assert cka(x, -3 * x @ turn + 5) == pytest.approx(1, abs=1e-6)
    assert cka(x, torch.randn(20, 6, generator=generator)) < 0.6
    # A linear map that is no rotation is seen.
    assert cka(x, x * torch.tensor([10.0, 1, 1, 1, 1, 1])) < 0.9
    with pytest.raises(ValueError, match="20 and 3"):
        cka(x, x[:3])


def test_alignment_by_hand():
    kernel, y = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([1.0, -1.0])
    assert kernel_alignment(kernel, torch.outer(y, y)) == pytest.approx(0.3162277660, abs=1e-9)
    assert kernel_alignment(torch.zeros(2, 2), kernel) == 0
    assert centred(kernel).sum(0).abs().max() < 1e-6


def test_ranks_by_hand():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(7 * torch.eye(5)[:, :3]) == pytest.approx(3)
    assert effective_rank(torch.outer(torch.ones(4), torch.ones(9))) == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.zeros(3, 3)) == participation_rank(torch.zeros(3, 3)) == 0
    shares = (0.75, 0.25)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in shares))
    )
    assert participation_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(1.6)
    filters = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert effective_rank(filters) == pytest.approx(effective_rank(filters.reshape(4, 12).T), rel=1e-6)


def test_the_kernel_of_a_linear_model_is_known():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(3, 4, bias=False)
    kernel = ntk(layer(x), list(layer.parameters()))
    assert torch.allclose(kernel, 4 * (x @ x.T).double(), atol=1e-5)
    projected = projected_ntk(lambda i: layer(x[i : i + 1]), 5, list(layer.parameters()), range(2000))
    assert kernel_alignment(kernel, projected) == pytest.approx(1, abs=1e-5)
    assert float(projected.trace() / kernel.trace()) == pytest.approx(1, abs=0.05)


def test_a_kernel_of_the_targets_is_aligned_with_them():
    labels = torch.tensor([0, 0, 1, 1, 2])
    targets = nn.functional.one_hot(labels).double()
    assert target_alignment(targets @ targets.T, labels) == pytest.approx(1)
    assert target_alignment(torch.eye(2), torch.tensor([0, 1])) == pytest.approx(
        1
    )  # centred, two examples are one axis
    assert target_alignment(torch.ones(5, 5), labels) == 0


def test_el2n_by_hand():
    logits = torch.tensor([[0.0, 0.0], [50.0, 0.0], [50.0, 0.0]])
    assert el2n(logits, torch.tensor([0, 0, 1])).tolist() == pytest.approx([0.5**0.5, 0, 2**0.5])
    assert logits[0].tolist() == [0, 0]


def test_forgetting_is_counted_only_after_learning():
    counts = ForgettingCounts(4)
    all_of_them = torch.arange(4)
    for right in ([1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1]):
        counts.add(all_of_them, torch.tensor(right, dtype=torch.bool))
    assert counts.counts(ALONE).tolist() == [2, math.inf, 1, 0]


def test_bins_hold_equally_many():
    scores = torch.tensor([0.3, 0.1, 0.9, 0.1, 0.5, 0.2])
    assert difficulty_bins(scores, 3).tolist() == [1, 0, 2, 0, 2, 1]
    assert difficulty_bins(scores, 4).bincount().tolist() == [2, 1, 2, 1]
    assert difficulty_bins(torch.zeros(0), 2).tolist() == []
    with pytest.raises(ValueError, match="bins >= 1"):
        difficulty_bins(scores, 0)


def test_group_means_are_over_all_batches():
    totals = GroupTotals(3)
    totals.add(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True]), torch.tensor([0, 0, 2]))
    totals.add(torch.tensor([3.0]), torch.tensor([False]), torch.tensor([2]))
    found = totals.metrics(ALONE)
    assert found == {
        "loss/0": 1.5,
        "loss/2": 4.5,
        "accuracy/0": 0.5,
        "accuracy/2": 0.5,
        "loss_gap": 3.0,
        "accuracy_gap": 0.0,
        "worst_accuracy": 0.5,
    }
    assert GroupTotals(2).metrics(ALONE) == {}
    with pytest.raises(ValueError, match=r"\[0, 3\), got 0\.\.3"):
        totals.add(torch.zeros(2), torch.zeros(2, dtype=torch.bool), torch.tensor([0, 3]))


def test_where_curves_cross():
    first = {0: 2.0, 10: 1.0, 20: 0.5, 30: 0.4}
    second = {0: 1.0, 10: 1.0, 20: 1.0, 30: 0.2, 40: 0.0}
    assert crossings(first, second) == pytest.approx([20 * 1 / 1.5, 20 + 10 * 0.5 / 0.7])
    assert crossings(first, first) == []


def test_the_last_layer_of_a_network_is_seen():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(2, 5, 4)
    with last_layer(network) as layers:
        output = network(x)
    assert torch.equal(layers.output, output)
    assert torch.equal(layers.features, network[:2](x).mean(1))
    assert not any(layer._forward_hooks for layer in network)
    headless = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
    with last_layer(headless) as layers:
        output = headless(x[0])
    assert torch.equal(layers.features, output)
