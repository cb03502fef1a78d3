"""Which weights are pruned, when, and where the learning-rate schedule is read meanwhile."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.optim import Layout
from lowland.trainers.engines.torch_engine import TorchEngine
from lowland.trainers.methods.base import Problem
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.magnitude_pruning import MagnitudePruning
from lowland.trainers.methods.rounds import Round, gradual_rounds, iterative_rounds
from lowland.trainers.methods.selection import smallest_until
from lowland.trainers.world import World


def alone(counts):
    return counts


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 2.0**90, width=32), min_size=1, max_size=30), st.data())
def test_the_kth_smallest_is_exact(numbers, data):
    numbers = torch.tensor(numbers)
    k = data.draw(st.integers(1, len(numbers)))
    cut = data.draw(st.integers(0, len(numbers)))
    pieces = [numbers[:cut], numbers[cut:].clone()]
    assert smallest_until(pieces, [0, 0], [k], alone)[0] == numbers.sort().values[k - 1]


def test_sets_are_told_apart_and_ranks_agree():
    first, second = torch.tensor([5.0, 1.0, 3.0]), torch.tensor([0.0, 1e-40, 2.0, 9.0])
    assert smallest_until([first, second], [0, 1], [2, 2], alone).tolist() == pytest.approx([3.0, 1e-40])
    assert smallest_until([first, second], [0, 1], [0, 4], alone).tolist() == [-1.0, 9.0]
    # Another rank with the same numbers: the second smallest of two pairs is the smallest.
    doubled = smallest_until([first, second], [0, 1], [2, 3], lambda counts: 2 * counts)
    assert doubled.tolist() == pytest.approx([1.0, 1e-40])


def test_rounds_by_hand():
    rounds = iterative_rounds(0.75, 2, dense=40, total=100)
    assert [one.step for one in rounds] == [40, 70]
    assert [one.sparsity for one in rounds] == pytest.approx([0.5, 0.75])
    assert iterative_rounds(0.8, 1, dense=3, total=9) == (Round(3, pytest.approx(0.8)),)
    cubic = gradual_rounds(0.8, 2, dense=10, end=30)
    assert [one.step for one in cubic] == [20, 30]
    assert [one.sparsity for one in cubic] == pytest.approx([0.8 * 7 / 8, 0.8])


def pruning(rewind):
    return MagnitudePruning((Round(40, 0.5), Round(70, 0.75)), scope="global", kinds=(), rewind=rewind, rewind_to=5)


def test_where_the_schedule_is_read():
    steps = (0, 39, 40, 69, 70, 99)
    read = {rewind: [pruning(rewind).schedule(step, 100) for step in steps] for rewind in _REWINDS}
    assert read["none"] == [(step, 100) for step in steps]
    assert read["learning_rate"] == [(0, 40), (39, 40), (0, 30), (29, 30), (0, 30), (29, 30)]
    assert read["weights"] == [(0, 40), (39, 40), (5, 35), (34, 35), (5, 35), (34, 35)]


_REWINDS = ("none", "learning_rate", "weights")


def test_multiplications_by_hand():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1, groups=2), torch.nn.Flatten(), torch.nn.Linear(4 * 25, 3)
    )
    counted = Multiplications(network, (2, 5, 5))
    assert counted.by_layer == {"0": 4 * 25 * 9, "2": 300}
    assert counted.at({"network.0.weight": 0.5, "other": 1.0}) == {"flops": 2400, "sparse_flops": 2400 - 900}


WORLD = World(0, 1, 0, torch.device("cpu"), None)


def engine_with(method, seed=0):
    """A linear network of 24 prunable weights and its engine."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(6, 4))
    method.build(network, Problem(classes=4, class_counts=(1,) * 4, groups=0, shape=(6,), seed=0))
    layout = Layout.whole([list(network.named_parameters())])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    engine = TorchEngine(network, optimizer, layout, world=WORLD, max_grad_norm=None, autocast=False)
    method.attach(engine, WORLD)
    return engine


def train(engine, method, steps, skipped=()):
    """Steps, and the weights after each."""
    found = {}
    for number in steps:
        method.begin_step(number)
        engine.module(torch.arange(6.0)).square().sum().mul(1e-3).backward()
        if number + 1 in skipped:
            engine.module.zero_grad()
        else:
            engine.step(1.0)
            method.after_step(engine, WORLD, None)
            method.after_all(engine)
        found[number + 1] = engine.module[0].weight.detach().clone()
    return found


def in_rounds(rewind="none"):
    rounds = (Round(3, 0.5), Round(5, 0.75))
    return MagnitudePruning(rounds, scope="global", kinds=("matrices",), rewind=rewind, rewind_to=2)


@pytest.mark.parametrize(("skipped", "zeros"), [((3,), [0, 12, 18, 18]), ((5,), [12, 12, 12, 18])])
def test_a_round_whose_step_is_skipped_follows_after_it(skipped, zeros):
    method = in_rounds()
    weights = train(engine_with(method), method, range(6), skipped)
    assert [int((weights[step] == 0).sum()) for step in (3, 4, 5, 6)] == zeros


def test_of_rounds_whose_steps_are_skipped_the_last_follows():
    method = in_rounds("weights")
    weights = train(engine_with(method), method, range(6), (3, 4, 5))
    mask = weights[6] != 0
    assert int(mask.sum()) == 6
    assert torch.equal(weights[6], weights[2] * mask)


def test_early_weights_are_taken_after_a_step_that_is_skipped():
    never = MagnitudePruning((Round(99, 0.5),), scope="global", kinds=("matrices",), rewind="none")
    early = train(engine_with(never), never, range(3), (2,))[3]
    method = in_rounds("weights")
    weights = train(engine_with(method), method, range(5), (2,))
    for step, left in ((3, 12), (5, 6)):
        mask = weights[step] != 0
        assert int(mask.sum()) == left
        assert torch.equal(weights[step], early * mask)


def test_a_resume_after_the_last_round_prunes_no_more_and_says_the_same():
    method, again = in_rounds("weights"), in_rounds("weights")
    assert method.metrics() == {}
    engine = engine_with(method)
    before = train(engine, method, range(5))[5]
    resumed = engine_with(again)
    for ours, theirs in zip(resumed.pieces(), engine.pieces(), strict=True):
        ours.tensors["weight"].copy_(theirs.tensors["weight"])
        for name, state in method.piece_state(theirs).items():
            again.piece_state(ours)[name].copy_(state)
    again.load_state(method.state())
    assert again.metrics() == method.metrics()
    assert again.metrics() == {"sparsity": 0.75, "flops": 48.0, "sparse_flops": 12.0}
    after = train(resumed, again, range(5, 7))[7]
    assert not bool(((before == 0) & (after != 0)).any())
    assert not torch.equal(after, before)


def test_nothing_is_done_to_weights_before_the_first_round():
    method = in_rounds()
    engine = engine_with(method)
    changed = []
    engine.masters_changed = lambda: changed.append(True)
    train(engine, method, range(2))
    assert not changed
    train(engine, method, range(2, 4))
    assert len(changed) == 2
