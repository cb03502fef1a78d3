"""Which weights are pruned, when, and where the learning-rate schedule is read meanwhile."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.magnitude_pruning import MagnitudePruning, Round, gradual_rounds, iterative_rounds
from lowland.trainers.methods.selection import smallest_until


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
