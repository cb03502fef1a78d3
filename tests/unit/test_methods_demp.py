"""Units that die are taken out, and the smaller network computes the same."""

import copy

import pytest
import torch
from support.removable import IMAGES, LABELS, PROBLEM, WORLD, Cut, engine_of, small
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import Outputs
from lowland.trainers.methods.demp import DemP, one_cycle
from lowland.trainers.methods.noise import normal_at, normal_in_a_row
from lowland.trainers.methods.stack import Methods
from lowland.trainers.models.resnets import resnet_cifar, wide_resnet
from lowland.trainers.models.units import fit_units, removable_units, sliced, without_units


def of_weights(weights):
    """The network that has these weights."""
    network = small()
    fit_units(network, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    network.load_state_dict(weights)
    return network


def step(network, engine, method, number):
    """One step of training by the method."""
    method.begin_step(number)
    losses = F.cross_entropy(network(IMAGES), LABELS, reduction="none")
    outputs = Outputs(torch.zeros(6, 3), F.one_hot(LABELS, 3).float(), LABELS, losses)
    (losses + method.extra(outputs)).mean().backward()
    engine.step(1.0)
    method.after_step(engine, WORLD, None)
    method.after_all(engine)


def trained(network, method, steps):
    method.build(network, PROBLEM)
    engine = engine_of(network)
    method.attach(engine, WORLD)
    for number in range(steps):
        step(network, engine, method, number)
    return engine


def test_the_cycle_by_hand():
    values = [one_cycle(step, 100, 1.0) for step in (0, 15, 30, 65, 100, 150)]
    assert values == pytest.approx([0.04, 0.52, 1.0, 0.500002, 4e-6, 4e-6])


def test_units_that_can_be_removed():
    found = removable_units(small())
    assert [(one.producer, one.norm, one.consumer, one.count) for one in found] == [
        ("2", None, "4", 8),
        ("0.0", "0.1", "0.3", 6),
    ]
    resnet = removable_units(resnet_cifar(18, channels=3, classes=10))
    assert len(resnet) == 8
    assert {one.norm for one in resnet} >= {"stages.0.0.body.1", "stages.3.1.body.1"}
    assert len(removable_units(resnet_cifar(50, channels=3, classes=10))) == 2 * 16
    assert len(removable_units(wide_resnet(16, 2, channels=3, classes=10))) == 6


def test_noise_is_standard_normal_and_a_function_of_its_place():
    numbers = normal_at(3, 5, torch.arange(200_000))
    assert abs(float(numbers.mean())) < 0.01
    assert abs(float(numbers.std()) - 1) < 0.01
    assert abs(float((numbers[1:] * numbers[:-1]).mean())) < 0.01
    assert torch.equal(normal_at(3, 5, torch.arange(1000, 1010)), numbers[1000:1010])
    for other in (normal_at(4, 5, torch.arange(10)), normal_at(3, 6, torch.arange(10))):
        assert not torch.equal(other, numbers[:10])


@pytest.mark.parametrize("chunk", [4, 1 << 20])
def test_noise_in_a_row_is_that_of_its_pieces(chunk, monkeypatch):
    monkeypatch.setattr("lowland.trainers.methods.noise._CHUNK", chunk)
    streams, starts, sizes = [5, -2, 5], [0, 3, 7], [6, 1, 4]
    row = normal_in_a_row(3, streams, starts, sizes, torch.device("cpu"))
    pieces = [
        normal_at(3, stream, torch.arange(start, start + size))
        for stream, start, size in zip(streams, starts, sizes, strict=True)
    ]
    assert torch.equal(row, torch.cat(pieces))


class Operations(TorchDispatchMode):
    """Notes what is computed; views are not."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if not function.is_view:
            self.names.append(str(function))
        return function(*arguments, **(keywords or {}))


def test_a_step_waits_for_nothing_and_does_as_much_in_deep_networks():
    done = []
    for depth in (10, 22):
        network, method = wide_resnet(depth, 1, channels=2, classes=3), DemP(0.1, 1e-3, span=9, every=3)
        engine = trained(network, method, 3)
        method.begin_step(3)
        network(IMAGES)
        with Operations() as operations:
            method.after_step(engine, WORLD, None)
            method.after_all(engine)
        done.append(operations.names)
    assert done[0] == done[1]
    assert not any("_local_scalar_dense" in name or "nonzero" in name for name in done[0])
    assert len(done[0]) < 80


def test_strength_zero_is_plain_training_bit_by_bit():
    ours, plain = small(), small()
    trained(ours, DemP(0.0, 0.0, span=4, every=10), 4)
    engine = engine_of(plain)
    for _ in range(4):
        F.cross_entropy(plain(IMAGES), LABELS, reduction="none").mean().backward()
        engine.step(1.0)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_dead_unit_is_removed_and_nothing_else():
    network = small(kill=(1, 4))
    method = DemP(0.0, 0.0, span=4, every=2)
    trained(network, method, 3)
    assert method.kept["0.0"].tolist() == [True, False, True, True, False, True]
    assert bool((network[0][0].weight[[1, 4]] == 0).all())
    assert bool((network[0][3].weight[:, [1, 4]] == 0).all())
    assert bool((network[0][1].weight[[1, 4]] == 0).all())
    assert bool((network[0][0].weight[0] != 0).any())
    assert method.metrics()["removed"] == pytest.approx(2 / 14)


def test_masking_dead_units_changes_no_bit_and_taking_them_out_only_rounding():
    network = small(kill=(1, 4)).eval()
    before = network(IMAGES)
    kept = {"0.0": torch.tensor([True, False, True, True, False, True])}
    masked = copy.deepcopy(network)
    with torch.no_grad():
        for name, dimension in removable_units(network)[1].tensors().items():
            masked.get_parameter(name).index_fill_(
                dimension, torch.tensor([1, 4]), 0
            ) if "running" not in name else None
    assert torch.equal(masked(IMAGES), before)
    smaller = without_units(network, kept)
    assert smaller[0][0].weight.shape == (4, 2, 3, 3)
    assert smaller[0][3].in_channels == 4
    torch.testing.assert_close(smaller(IMAGES), before)
    rebuilt = of_weights(smaller.state_dict()).eval()
    assert torch.equal(rebuilt(IMAGES), smaller(IMAGES))


def test_training_without_removed_units_is_training_with_them_masked():
    masked = small(kill=(1, 4))
    method = DemP(0.0, 0.0, span=9, every=1)
    trained(masked, method, 1)
    method._every = 100
    smaller = of_weights(sliced(masked.state_dict(), method.kept, method.units))
    engines = [engine_of(masked), engine_of(smaller)]
    method.attach(engines[0], WORLD)
    step(masked, engines[0], method, 1)
    F.cross_entropy(smaller(IMAGES), LABELS, reduction="none").mean().backward()
    engines[1].step(1.0)
    expected = sliced(masked.state_dict(), method.kept, removable_units(masked))
    for name, value in smaller.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_noise_is_on_live_units_alone_and_does_not_depend_on_the_cut():
    networks = []
    for parts in (1, 3):
        network = small(kill=(2,))
        method = DemP(0.0, 1e-2, span=4, every=100)
        method.build(network, PROBLEM)
        engine = Cut(network, parts)
        method.attach(engine, WORLD)
        method.begin_step(0)
        network(IMAGES)
        method.after_step(engine, WORLD, None)
        networks.append(network)
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)
    plain = small(kill=(2,))
    moved = networks[0][0][0].weight != plain[0][0].weight
    assert not bool(moved[2].any())
    assert bool(moved[[0, 1, 3, 4, 5]].all())
    assert not bool((networks[0][0][3].weight != plain[0][3].weight)[:, 2].any())
    change = (networks[0][4].weight - plain[4].weight).detach()
    assert 0 < float(change.std()) < 5 * 1e-2 / 25


def test_units_are_live_by_the_first_pass_of_a_step():
    network = small(kill=(1,))
    method = DemP(0.0, 0.0, span=4, every=1)
    methods = Methods([method], WORLD)
    methods.build(network, PROBLEM)
    for number in range(2):
        methods.begin_step(number)
        network(IMAGES)
        methods.end_pass()
        with torch.no_grad():
            network[0][1].bias[1] = 1e3
        network(IMAGES)
        assert bool(method._highest["0.0"][1] > 0) == (number == 1)


def test_the_penalty_pulls_scales_to_zero():
    network = small()
    method = DemP(0.5, 0.0, span=10, every=100)
    trained(network, method, 10)
    assert float(network[0][1].weight.abs().sum().detach()) < 6 * 0.7


def test_one_unit_is_always_left_and_a_resume_goes_on():
    network = small(kill=range(6))
    method = DemP(0.0, 0.0, span=4, every=2)
    trained(network, method, 3)
    assert method.kept["0.0"].all()
    again = DemP(0.0, 0.0, span=4, every=2)
    again.build(small(), PROBLEM)
    again.load_state(method.state())
    assert all(torch.equal(again.state()[name], value) for name, value in method.state().items())


def test_a_network_without_such_units_is_refused():
    with pytest.raises(RecipeError, match="Linear has no removable units"):
        DemP(0.1, 0.0, span=4, every=2).build(nn.Linear(3, 2), PROBLEM)


def test_flops_of_the_smaller_network():
    network = small(kill=(1, 4))
    method = DemP(0.0, 0.0, span=4, every=1)
    trained(network, method, 1)
    said = method.metrics()
    first, second = 9 * 6 * 18, 5 * 54
    live = method.kept["2"].double().mean().item()
    assert said["flops"] == 2 * (first + second + 5 * 8 + 8 * 3)
    assert said["smaller_flops"] == pytest.approx(2 * (first * 4 / 6 + second * 4 / 6 + live * (5 * 8 + 8 * 3)))
