"""Robustness regularisers against cases computed by hand, and against their definitions computed another way."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from support.methods import CLASSES, built, gradients, gradients_of, network, outputs
from torch import nn
from torch.nn import functional as F

from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import Outputs, Problem
from lowland.trainers.methods.classifier import classifier_of
from lowland.trainers.methods.etf import FixedETF, simplex_etf
from lowland.trainers.methods.irm import IRM, scale_penalty
from lowland.trainers.methods.rationale import RationaleInvariance
from lowland.trainers.methods.spectral_decoupling import SpectralDecoupling
from lowland.trainers.methods.spectral_risk import risk_weights, spectrum
from lowland.trainers.methods.vrex import VREx, risk_variance
from lowland.trainers.methods.weight_balancing import (
    WeightBalancing,
    class_balanced_weights,
    norm_bound,
    tau_normalized,
)
from lowland.trainers.models.heads import ETFClassifier


def said(logits, labels, groups=None):
    logits = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(labels)
    losses = F.cross_entropy(logits, labels, reduction="none")
    groups = None if groups is None else torch.tensor(groups)
    return Outputs(logits, F.one_hot(labels, logits.shape[1]).float(), labels, losses, None, groups)


def test_spectral_decoupling_by_hand():
    both = said([[1.0, 2.0], [0.0, -3.0]], [0, 1])
    assert SpectralDecoupling(0.5).extra(both).tolist() == [0.25 * 5, 0.25 * 9]
    assert SpectralDecoupling(0.5, (1.0, 2.0)).extra(both).tolist() == [0.0, 0.25 * 26]


def test_variance_of_risks_by_hand():
    losses, groups = torch.tensor([1.0, 3.0, 5.0, 7.0, 8.0]), torch.tensor([4, 4, 0, 0, 0])
    # Risks 2 and 20/3, whose distance is 14/3.
    assert risk_variance(losses, groups).item() == pytest.approx((7 / 3) ** 2)
    assert risk_variance(losses, torch.zeros(5, dtype=torch.int64)).item() == 0


def test_vrex_begins_when_it_is_to():
    method = VREx(2.0, start=3)
    method.begin_step(2)
    assert method._now == 0
    method.begin_step(3)
    assert method._now == 2.0


def test_the_irm_penalty_is_the_squared_derivative_by_a_scale_of_logits():
    model = network()
    out = outputs(model)
    penalties = []
    for group in out.groups.unique():
        here = out.groups == group
        scale = torch.ones((), requires_grad=True)
        risk = F.cross_entropy(scale * out.logits[here], out.labels[here])
        penalties.append(torch.autograd.grad(risk, scale, create_graph=True)[0] ** 2)
    penalty = torch.stack(penalties).mean()
    numbers = IRM(1.0).scalars(out)["irm"]
    torch.testing.assert_close(scale_penalty(numbers, out.groups, unbiased=False), penalty)
    expected = gradients_of(out.losses.mean() + 3 * penalty, model)
    for ours, right in zip(gradients(IRM(3.0, unbiased=False), 2, 2), expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-6)


def test_the_unbiased_irm_penalty_is_the_mean_over_pairs():
    numbers, groups = torch.tensor([1.0, -2.0, 4.0, 9.0]), torch.tensor([0, 0, 0, 1])
    pairs = [numbers[i] * numbers[j] for i, j in itertools.permutations(range(3), 2)]
    # A single example has no pair.
    assert scale_penalty(numbers, groups, unbiased=True).item() == pytest.approx(float(sum(pairs)) / 6 / 2)


def test_the_irm_penalty_is_zero_at_the_best_scale():
    out = said([[0.0, 0.0]] * 2, [0, 1], [0, 0])
    assert IRM(1.0).scalars(out)["irm"].tolist() == [0.0, 0.0]


SPECTRA = [("superquantile", 0.35), ("extremile", 2.5), ("esrm", 1.5)]


@pytest.mark.parametrize(("kind", "parameter"), SPECTRA)
def test_spectra_have_mean_one_and_do_not_fall(kind, parameter):
    for count in (1, 7, 100):
        weights = spectrum(kind, parameter, count)
        assert weights.mean().item() == pytest.approx(1)
        assert bool((weights.diff() >= -1e-12).all())


def test_spectra_by_hand():
    assert spectrum("superquantile", 0.5, 4).tolist() == [0, 0, 2, 2]
    assert spectrum("superquantile", 0.625, 4).tolist() == pytest.approx([0, 0, 4 / 3, 8 / 3])
    assert spectrum("extremile", 2, 3).tolist() == pytest.approx([1 / 3, 1, 5 / 3])
    assert spectrum("superquantile", 0.0, 5).tolist() == spectrum("extremile", 1.0, 5).tolist() == [1.0] * 5
    torch.testing.assert_close(spectrum("esrm", 1e-9, 5), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("nu", [0.05, 0.4])
@pytest.mark.parametrize(("kind", "parameter"), SPECTRA)
def test_weights_solve_the_maximisation_over_the_permutahedron(kind, parameter, nu):
    """The same problem by a general solver over mixtures of all permutations of the spectrum."""
    losses = np.array([0.3, 2.0, 1.1, 0.9])
    sigma = spectrum(kind, parameter, 4).numpy() / 4
    corners = np.array(list(itertools.permutations(sigma)))

    def negative(mixture):
        q = mixture @ corners
        return -(q @ losses - nu * 4 * ((q - 0.25) ** 2).sum())

    start = np.full(len(corners), 1 / len(corners))
    simplex = {"type": "eq", "fun": lambda mixture: mixture.sum() - 1}
    solved = minimize(negative, start, bounds=[(0, 1)] * len(corners), constraints=[simplex], options={"ftol": 1e-13})
    found = risk_weights(torch.tensor(losses), spectrum(kind, parameter, 4), nu).numpy() / 4
    assert found == pytest.approx(solved.x @ corners, abs=2e-4)


def test_without_divergence_weights_follow_ranks_and_ties_share():
    losses = torch.tensor([3.0, 1.0, 3.0, 2.0])
    assert risk_weights(losses, torch.tensor([0.0, 0.0, 1.0, 3.0]).double(), 0.0).tolist() == [2.0, 0.0, 2.0, 0.0]
    uniform = risk_weights(losses, spectrum("superquantile", 0.5, 4), 1e6)
    torch.testing.assert_close(uniform, torch.ones(4).double(), atol=1e-5, rtol=0)
    # The linear program without divergence has the same value.
    bounds = linprog(-losses.numpy(), A_eq=np.ones((1, 4)), b_eq=[1], bounds=[(0, 0.5)] * 4)
    value = (risk_weights(losses, spectrum("superquantile", 0.5, 4), 0.0) / 4 * losses).sum()
    assert float(value) == pytest.approx(-bounds.fun)


def test_class_vectors_are_equiangular():
    vectors = simplex_etf(5, 9, seed=2).double()
    cosines = vectors @ vectors.T
    expected = torch.full((5, 5), -0.25).double().fill_diagonal_(1)
    torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=0)
    assert torch.equal(simplex_etf(5, 9, seed=2), simplex_etf(5, 9, seed=2))
    with pytest.raises(ValueError, match="need as many dimensions, not 4"):
        simplex_etf(5, 4, seed=2)


def test_the_fixed_head_has_no_parameter_and_loss_zero_at_its_vectors():
    model, method = built(FixedETF("dot_regression", scale=4.0))
    assert isinstance(model.fc, ETFClassifier)
    assert [name for name, _ in model.named_parameters()] == ["body.weight", "body.bias"]
    labels = torch.tensor([2, 0])
    logits = model.fc(3 * model.fc.vectors[labels])
    targets = F.one_hot(labels, CLASSES).float()
    losses = method.losses(Outputs(logits, targets, labels, torch.zeros(2)))
    torch.testing.assert_close(losses, torch.zeros(2), atol=1e-6, rtol=0)
    # Features of class 0 taken for class 2: cosine -1/3, so (4/3)^2 / 2.
    swapped = Outputs(logits, targets.flip(0), labels.flip(0), torch.zeros(2))
    torch.testing.assert_close(method.losses(swapped), torch.full((2,), 8 / 9))


def test_a_fixed_head_needs_room():
    with pytest.raises(RecipeError, match="here are 20 classes and 8 features"):
        FixedETF("dot_regression", 1.0).build(network(), Problem(20, (1,) * 20, 0, (6,), 0))
    with pytest.raises(RecipeError, match="Sequential has 0 linear layers"):
        classifier_of(nn.Sequential(nn.Linear(3, 2)), "fixed_etf")


def test_class_balanced_weights_by_hand():
    assert class_balanced_weights([1, 3], 1.0).tolist() == pytest.approx([1.5, 0.5])
    assert class_balanced_weights([1, 2], 0.5).tolist() == pytest.approx([1.2, 0.8])
    assert class_balanced_weights([5, 50, 500], 0.0).tolist() == [1, 1, 1]


def test_norms_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert norm_bound(weight, 0.0) == 1
    assert norm_bound(weight, 0.25) == 2
    assert tau_normalized(weight, 1.0).norm(dim=1).tolist() == [1, 1]
    assert torch.equal(tau_normalized(weight, 0.0), weight)


def test_weight_balancing_trains_the_classifier_alone():
    method = WeightBalancing(0.9, 0.1, relative=True, train="classifier")
    model, _ = built(method)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    norms = network().fc.weight.detach().norm(dim=1)
    assert method._max_norm == pytest.approx(float(norms.min() + 0.1 * (norms.max() - norms.min())))


def test_balancing_refuses_a_class_without_examples():
    problem = Problem(CLASSES, (3, 0, 2, 1), 0, (6,), 0)
    with pytest.raises(RecipeError, match="class 1 has none"):
        WeightBalancing(0.9, None, relative=False, train="all").build(network(), problem)


def test_rationales_by_hand():
    """Two classes, one feature more than needed: distances of w * z from the bank."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2, bias=False)

    model = Two()
    with torch.no_grad():
        model.fc.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    method = RationaleInvariance(1.0, momentum=0.25)
    method.build(model, Problem(2, (1, 1), 0, (6,), 0))
    features = torch.tensor([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]])
    out = Outputs(model.fc(features), torch.eye(2)[[0, 0, 1]], torch.tensor([0, 0, 1]), torch.ones(3), features)

    method.begin_step(0)
    assert method.scalars(out)["rationale"].tolist() == [0, 0, 0]
    method.after_step(None, _Alone(), None)
    # Class 0: mean features (2, 1); class 1: (0, 2).
    assert method._bank[0].tolist() == [[2, 2], [0, -1]]
    assert method._bank[1].tolist() == [[0, 4], [0, -2]]
    assert method.scalars(out)["rationale"].tolist() == [1, 1, 0]

    method.begin_step(1)
    method.scalars(Outputs(out.logits[:1], out.targets[:1], out.labels[:1], out.losses[:1], torch.tensor([[6.0, 5.0]])))
    method.after_step(None, _Alone(), None)
    assert method._bank[0].tolist() == [[3, 4], [0, -2]]
    assert method._bank[1].tolist() == [[0, 4], [0, -2]]

    restored = RationaleInvariance(1.0, momentum=0.25)
    restored.load_state(method.state())
    assert torch.equal(restored._bank, method._bank)
    assert restored._seen.tolist() == [True, True]


class _Alone:
    def sum(self, values):
        return values


def test_a_bank_that_would_be_huge_is_refused():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(512, 1000)

    with pytest.raises(RecipeError, match=r"= 512000000 numbers are 1\.9 GiB"):
        RationaleInvariance(1.0, 0.1).build(Wide(), Problem(1000, (1,) * 1000, 0, (6,), 0))
