"""Units with the smallest filters become 0, stay so, and are not exported."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.removable import IMAGES, LABELS, PROBLEM, WORLD, Cut, engine_of, small
from torch import nn
from torch.nn import functional as F

from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.rounds import Round
from lowland.trainers.methods.unit_pruning import UnitPruning, largest_units
from lowland.trainers.models.units import removable_units, without_units


def units_of(network):
    return {one.producer: one for one in removable_units(network)}


def pruning(rounds, *, scope="tensor", rewind="none", rewind_to=1):
    return UnitPruning(tuple(Round(*one) for one in rounds), scope=scope, rewind=rewind, rewind_to=rewind_to)


def step(network, engine, method, number):
    """One step of training, and of the method."""
    if method is not None:
        method.begin_step(number)
    F.cross_entropy(network(IMAGES), LABELS).backward()
    engine.step(1.0)
    if method is not None:
        method.after_step(engine, WORLD, None)
        method.after_all(engine)


def trained(network, method, steps):
    """An engine after these steps."""
    method.build(network, PROBLEM)
    engine = engine_of(network)
    method.attach(engine, WORLD)
    for number in steps:
        step(network, engine, method, number)
    return engine


def stays(norms, counts, share, scope, gone=()):
    left = torch.ones(len(norms), dtype=torch.bool)
    left[list(gone)] = False
    found = largest_units(torch.tensor(norms, dtype=torch.float64), counts, left, share, scope)
    return [index for index, kept in enumerate(found.tolist()) if kept]


def test_which_units_stay_by_hand():
    norms, counts = [1.0, 4.0, 2.0, 3.0, 30.0, 10.0], [4, 2]
    assert stays(norms, counts, 0.5, "tensor") == [1, 3, 4]
    # Over the means 2.5 and 20: 0.4, 1.6, 0.8, 1.2 and 1.5, 0.5.
    assert stays(norms, counts, 0.5, "global") == [1, 3, 4]
    assert stays(norms, counts, 1 / 3, "global") == [1, 2, 3, 4]
    # Of those that are left the largest of either layer stay.
    assert stays(norms, counts, 4 / 6, "global", gone=(0, 2, 3)) == [1, 4]
    # The mean of those that are left is 3: 2/3 is less than 25/27.5, which 2/1.5 were not.
    assert stays([0.0, 4.0, 2.0, 0.0, 30.0, 25.0], counts, 0.5, "global", gone=(0, 3)) == [1, 4, 5]
    assert stays(norms, counts, 0.99, "global") == stays(norms, counts, 0.99, "tensor") == [1, 4]
    assert stays([1.0, 2.0, 2.0, 2.0], [4], 0.5, "tensor") == [1, 2], "of equal ones those in front stay"
    assert stays([0.0, 0.0, 0.0, 1.0], [2, 2], 0.9, "global") == [0, 3], "a layer of zeros keeps one"


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["global", "tensor"]))
def test_shares_are_kept_and_what_is_gone_stays_gone(data, scope):
    counts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    values = st.floats(0, 1e6, width=32)
    left = torch.ones(sum(counts), dtype=torch.bool)
    for share in sorted(data.draw(st.lists(st.floats(0, 0.99), min_size=2, max_size=3))):
        norms = torch.tensor(data.draw(st.lists(values, min_size=len(left), max_size=len(left))), dtype=torch.float64)
        now = largest_units(norms, counts, left, share, scope)
        assert not bool((now & ~left).any())
        layers = now.split(counts)
        assert all(bool(layer.any()) for layer in layers)
        if scope == "tensor":
            wanted = [min(round(share * count), count - 1) for count in counts]
            assert [int((~layer).sum()) for layer in layers] == wanted
        else:
            assert int((~now).sum()) == min(round(share * len(now)), len(now) - len(counts))
        left = now


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_smallest_filters_are_zeroed_with_all_that_belongs_to_them(memory):
    """Of two layers of 6 and 8 units; a round after the second step, and the weights stay 0 in the third."""
    network = small().to(memory_format=memory)
    with torch.no_grad():
        network[0][0].weight[[0, 2, 3, 5]] *= 9
        network[2].weight[[1, 3, 4, 6, 7]] *= 9
    before = copy.deepcopy(network)
    method = pruning([(2, 0.4)])
    engine = trained(network, method, range(1))
    assert not method.metrics()
    assert bool((network[0][0].weight[1] != before[0][0].weight[1]).any())
    step(network, engine, method, 1)
    step(network, engine, method, 2)
    gone = {producer: (~kept).nonzero()[:, 0] for producer, kept in method.kept.items()}
    assert {producer: units.tolist() for producer, units in gone.items()} == {"2": [0, 2, 5], "0.0": [1, 4]}
    pieces = {piece.name: piece for piece in engine.pieces()}
    for producer, units in units_of(network).items():
        for name, dimension in units.tensors().items():
            if name in pieces:
                for tensor in pieces[name].tensors.values():
                    assert not bool(tensor.index_select(dimension, gone[producer]).any()), name
                    assert bool(tensor.any()), name
    first, second, third, last = 9 * 6 * 18, 5 * 54, 5 * 8, 8 * 3
    smaller = first * 4 / 6 + second * 4 / 6 + (third + last) * 5 / 8
    assert method.metrics() == pytest.approx(
        {"removed": 5 / 14, "flops": 2 * (first + second + third + last), "smaller_flops": 2 * smaller}
    )


def test_the_exported_network_computes_the_same_and_is_smaller():
    network = small()
    method = pruning([(1, 0.5), (2, 0.7)], scope="global")
    trained(network, method, range(3))
    network.eval()
    smaller = without_units(copy.deepcopy(network), method.kept).eval()
    weights = method.exported(network.state_dict())
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        name: tuple(tensor.shape) for name, tensor in smaller.state_dict().items()
    }
    assert all(torch.equal(weights[name], tensor) for name, tensor in smaller.state_dict().items())
    assert sum(p.numel() for p in smaller.parameters()) < 0.5 * sum(p.numel() for p in network.parameters())
    torch.testing.assert_close(smaller(IMAGES), network(IMAGES))


def test_share_zero_is_plain_training_bit_by_bit():
    ours, plain = small(), small()
    method = pruning([(1, 0.0), (3, 0.0)], rewind="learning_rate")
    trained(ours, method, range(4))
    engine = engine_of(plain)
    for number in range(4):
        step(plain, engine, None, number)
    assert method.metrics()["removed"] == 0
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_weights_go_back_to_early_ones_but_for_what_is_gone():
    early = small()
    trained(early, pruning([(99, 0.5)]), range(1))
    network = small()
    method = pruning([(3, 0.5)], rewind="weights")
    engine = trained(network, method, range(3))
    masked = {name: value.clone() for name, value in early.named_parameters()}
    for producer, units in units_of(network).items():
        gone = (~method.kept[producer]).nonzero()[:, 0]
        assert len(gone) == units.count // 2
        for name, dimension in units.tensors().items():
            if name in masked:
                masked[name] = masked[name].detach().index_fill(dimension, gone, 0)
    for piece in engine.pieces():
        assert torch.equal(piece.tensors["weight"], masked[piece.name].view_as(piece.tensors["weight"]))
        assert not bool(piece.tensors["momentum_buffer"].any())


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_which_units_go_does_not_depend_on_how_weights_are_cut(scope):
    found = []
    for parts in (1, 3, 7):
        network, method = small(), pruning([(1, 0.5)], scope=scope)
        method.build(network, PROBLEM)
        engine = Cut(network, parts)
        method.attach(engine, WORLD)
        method.begin_step(0)
        method.after_step(engine, WORLD, None)
        method.after_all(engine)
        found.append(network.state_dict())
    norms = small()[0][0].weight.detach().abs().sum(dim=(1, 2, 3))
    zeros = (found[0]["0.0.weight"] == 0).flatten(1).all(dim=1)
    if scope == "tensor":
        assert zeros.nonzero()[:, 0].tolist() == sorted(norms.argsort()[:3].tolist())
    for other in found[1:]:
        assert all(torch.equal(other[name], value) for name, value in found[0].items())


def test_a_resume_goes_on_bit_by_bit_and_says_the_same():
    rounds = [(2, 0.3), (4, 0.6)]
    whole = small()
    trained(whole, pruning(rounds), range(6))
    half, method = small(), pruning(rounds)
    engine = trained(half, method, range(3))
    resumed, again = small(), pruning(rounds)
    other = trained(resumed, again, ())
    resumed.load_state_dict(half.state_dict())
    other.create_state()
    for ours, theirs in zip(other.pieces(), engine.pieces(), strict=True):
        for name, tensor in theirs.tensors.items():
            ours.tensors[name].copy_(tensor)
    again.load_state(method.state())
    assert again.metrics() == method.metrics()
    for number in range(3, 6):
        step(resumed, other, again, number)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_frozen_weights_are_no_units_and_networks_without_any_are_refused():
    network, method = small(), pruning([(1, 0.5)])
    network[0][0].weight.requires_grad_(False)
    method.build(network, PROBLEM)
    assert [one.producer for one in method.units] == ["2"]
    with pytest.raises(RecipeError, match=r"structure = units: Linear has no removable units .* structure: weights"):
        method.build(nn.Linear(3, 2), PROBLEM)
