"""Several losses: IGB by hand, ConFIG by its defining properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.methods import GROUPS, gradients, gradients_of, network, outputs

from lowland.trainers.methods.base import GlobalBatch, group_means
from lowland.trainers.methods.conflict_free import conflict_free
from lowland.trainers.methods.igb import IGB, igb_objective, igb_weights


def test_igb_weights_by_hand():
    losses, base = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])
    expected = 2 * torch.softmax(torch.tensor([1.0, 2.0]), dim=0)
    torch.testing.assert_close(igb_weights(losses, base), expected)
    assert igb_weights(base, base).tolist() == [1, 1]
    assert igb_weights(losses, None).tolist() == [1, 1]


def test_before_the_base_no_scale_of_a_loss_matters():
    def gradient(scale):
        point = torch.tensor([2.0, 3.0], requires_grad=True)
        igb_objective(torch.stack([scale * point[0] ** 2, point.sum()]), None).backward()
        return point.grad

    torch.testing.assert_close(gradient(1.0), gradient(50.0))


@pytest.mark.parametrize("based", [False, True])
def test_a_group_without_any_loss_leaves_all_factors_finite(based):
    method = IGB(2, base_start=0, base_end=0 if based else 9)
    method.load_state({"sums": torch.tensor([0.0, 1.0]).double(), "counts": torch.ones(2).double()})
    losses = torch.tensor([0.0, 0.0, 2.0, 4.0]).double()
    groups = torch.tensor([0, 0, 1, 1])
    found = method.weights(GlobalBatch(losses, groups, torch.ones(4).double(), groups, {}))
    assert bool(found.isfinite().all())
    assert bool(found.float().isfinite().all())
    share = float(igb_weights(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0]) if based else None)[1])
    assert found[2:].tolist() == pytest.approx([4 * share / (3 * 2 * 2)] * 2)
    assert bool(igb_objective(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0])).isfinite())


def test_as_a_method_it_is_the_objective_over_groups():
    model = network()
    said = outputs(model)
    base = torch.tensor([1.0, 2.0, 0.5]).double()

    def method():
        made = IGB(GROUPS, base_start=0, base_end=0)
        made.load_state({"sums": 3 * base, "counts": torch.full((GROUPS,), 3.0).double()})
        return made

    value = igb_objective(group_means(said.losses, said.groups), base.float()) / GROUPS
    for ours, right in zip(gradients(method(), 2, 2), gradients_of(value, model), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_cosines_with_all_gradients_are_equal(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 12, generator=generator, dtype=torch.float64)
    rows *= torch.logspace(-3, 3, count, dtype=torch.float64)[:, None]
    found = conflict_free(rows)
    cosines = (rows / rows.norm(dim=1, keepdim=True)) @ found / found.norm()
    assert bool((cosines > 0).all())
    torch.testing.assert_close(cosines, cosines[:1].expand(count))
    assert found.norm().item() == pytest.approx(float((rows @ found / found.norm()).sum()))


def test_cosines_are_in_the_proportions_preferred():
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = conflict_free(rows, (1.0, 2.0, 3.0))
    cosines = (rows / rows.norm(dim=1, keepdim=True)) @ found
    torch.testing.assert_close(cosines / cosines[0], torch.tensor([1.0, 2.0, 3.0]).double())


def test_two_losses_by_hand():
    """Gradients at right angles, of length 3 and 1: the bisector, as long as both projections together."""
    found = conflict_free(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize("package", ["conflictfree", "torchjd"])
def test_other_implementations_give_the_same(package):
    pytest.importorskip(package)
    rows = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    if package == "conflictfree":
        from conflictfree.grad_operator import ConFIG_update

        other = ConFIG_update([*rows])
    else:
        from torchjd.aggregation import ConFIG

        other = ConFIG()(rows)
    torch.testing.assert_close(conflict_free(rows), other, rtol=1e-5, atol=1e-5)


def test_limits():
    rows = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(conflict_free(rows), rows[0])
    torch.testing.assert_close(conflict_free(rows.repeat(2, 1)), 2 * rows[0])
    assert conflict_free(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).tolist() == [0, 0]
    assert conflict_free(torch.zeros(2, 3)).tolist() == [0, 0, 0]
    torch.testing.assert_close(conflict_free(torch.tensor([[0.0, 0.0], [1.0, 2.0]])), rows[0])
