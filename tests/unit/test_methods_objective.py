"""Functions of the global batch have the same gradients however the batch is cut; strength 0 is plain training."""

import pytest
import torch
from support.full import full
from support.methods import (
    EXAMPLES,
    GROUPS,
    built,
    gradients,
    gradients_of,
    network,
    outputs,
    plain_gradients,
)

from lowland.trainers.methods.base import Method
from lowland.trainers.methods.ceag import CEAG, AccuracyWindow
from lowland.trainers.methods.constraints import Constraints, Part, batch_constraint
from lowland.trainers.methods.etf import FixedETF
from lowland.trainers.methods.igb import IGB
from lowland.trainers.methods.irm import IRM
from lowland.trainers.methods.multipliers import Multipliers
from lowland.trainers.methods.objective import Objective
from lowland.trainers.methods.rationale import RationaleInvariance
from lowland.trainers.methods.spectral_decoupling import SpectralDecoupling
from lowland.trainers.methods.spectral_risk import SpectralRisk
from lowland.trainers.methods.vrex import VREx
from lowland.trainers.methods.weight_balancing import WeightBalancing


def multipliers(values):
    made = Multipliers([True] * len(values), lr=1.0)
    made.step(torch.tensor(values, dtype=torch.float64))
    return made


def constraints(strength):
    parts = [("a", "loss", Part(group=1)), ("b", "chance", Part(label=2)), ("c", "error", Part())]
    made = [
        batch_constraint(label, metric, "at_least" if metric == "chance" else "at_most", 0.1, part=part, less_all=True)
        for label, metric, part in parts
    ]
    return Constraints(made, multipliers([2 * strength, strength, strength]), chances=[0])


def rationale(strength):
    method = RationaleInvariance(strength, 0.1)

    class Begun(RationaleInvariance):
        def build(self, model, problem):
            super().build(model, problem)
            torch.manual_seed(5)
            self._bank = torch.randn_like(self._bank)
            self._seen[:3] = True

    method.__class__ = Begun
    return method


def ceag(strength):
    values = [strength * (1 + index) for index in range(GROUPS)]
    return CEAG(0.1, multipliers(values), AccuracyWindow(GROUPS, 4), dense=[1.0] * GROUPS, start=0)


METHODS = {
    "spectral_decoupling": lambda strength: SpectralDecoupling(strength, center=(0.5, 0, 0, 0)),
    "vrex": VREx,
    "irm": IRM,
    "irm squared": lambda strength: IRM(strength, unbiased=False),
    "weight_balancing": lambda strength: WeightBalancing(0.99 * strength, None, relative=False, train="all"),
    "superquantile": lambda strength: SpectralRisk("superquantile", 0.7 * strength, 0.3),
    "extremile": lambda strength: SpectralRisk("extremile", 1 + strength),
    "rationale": rationale,
    "constraints": constraints,
    "ceag": ceag,
}

methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


@methods
def test_strength_zero_is_plain_training_bit_by_bit(make):
    for ours, plain in zip(gradients(make(0.0)), plain_gradients(), strict=True):
        assert torch.equal(ours, plain)


@methods
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 2), full(1, 3), full(2, 1), full(4, 1), full(4, 3)])
def test_any_cut_of_the_batch_has_the_same_gradients(make, ranks, micro_batches):
    whole = gradients(make(1.0))
    plain = plain_gradients()
    assert any(not torch.allclose(a, b) for a, b in zip(whole, plain, strict=True)), "the method did nothing"
    for cut, one in zip(gradients(make(1.0), ranks, micro_batches), whole, strict=True):
        torch.testing.assert_close(cut, one, rtol=1e-5, atol=1e-7)


def test_igb_and_a_fixed_head_are_cut_alike():
    for make in (lambda: IGB(GROUPS, 0, 1), lambda: FixedETF("dot_regression", 4.0)):
        for cut, one in zip(gradients(make(), 2, 2), gradients(make()), strict=True):
            torch.testing.assert_close(cut, one, rtol=1e-5, atol=1e-7)


def test_methods_go_together():
    """Weights multiply the losses, penalties are of the losses without them."""
    together = gradients([VREx(2.0), SpectralRisk("extremile", 2.0), SpectralDecoupling(0.1)], model=network())
    parts = (VREx(2.0), SpectralRisk("extremile", 2.0), SpectralDecoupling(0.1))
    plain = plain_gradients()
    summed = [sum(own) for own in zip(*(gradients(part) for part in parts), strict=True)]
    for ours, total, base in zip(together, summed, plain, strict=True):
        torch.testing.assert_close(ours, total - 2 * base, rtol=1e-4, atol=1e-6)


def test_the_value_is_the_plain_loss():
    model, method = built(VREx(5.0))
    said = outputs(model)
    assert torch.equal(Objective([method])(said).detach(), said.losses.sum().detach())
    # Also where another loss is in its place: its gradients, and the plain loss for its value.
    found = Objective([FixedETF("dot_regression", 16.0)])(said)
    assert torch.equal(found.detach(), said.losses.sum().detach())
    found = gradients_of(found, model)
    replaced = FixedETF("dot_regression", 16.0).losses(outputs(model))
    for ours, right in zip(found, gradients_of(replaced.sum(), model), strict=True):
        torch.testing.assert_close(ours, right)


class Cubed(Method):
    """A function of the batch that is no mean: the cube of the sum of losses times the largest of them."""

    name = "cubed"
    of_batch = True

    def penalty(self, batch):
        return (batch.losses.sum() / 10) ** 3 * batch.losses.max()


def test_gradients_are_those_of_automatic_differentiation():
    model = network()
    losses = outputs(model).losses
    expected = gradients_of(losses.mean() + (losses.sum() / 10) ** 3 * losses.max(), model)
    for ours, right in zip(gradients(Cubed(), 2, 3), expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-7)


def test_what_is_not_finite_stays_so():
    model, method = built(SpectralRisk("superquantile", 0.5))
    with torch.no_grad():
        model.fc.bias[0] = torch.inf
    loss = Objective([method])(outputs(model)) / EXAMPLES
    assert not bool(torch.isfinite(loss))
