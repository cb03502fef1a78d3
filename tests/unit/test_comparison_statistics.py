"""Statistics of comparisons: by hand, and against counting every case."""

import math
from itertools import combinations, permutations, product
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowland.platform.comparison.statistics import (
    EXACT,
    differences,
    expected_best,
    holm,
    interval,
    paired_t,
    sign_flips,
)

NUMBERS = st.integers(-20, 20).map(float)


def test_the_expected_best_by_hand():
    # Of the six pairs of 1, 2, 3, 4, three have 1 as their lowest, two have 2, and one has 3.
    assert expected_best([3.0, 1.0, 4.0, 2.0]) == pytest.approx([2.5, 10 / 6, 1.25, 1.0])


@given(values=st.lists(NUMBERS | st.just(math.inf), min_size=1, max_size=6))
def test_the_expected_best_is_the_mean_over_all_orderings(values: list[float]):
    orders = list(permutations(values))
    for drawn, found in enumerate(expected_best(values), 1):
        assert found == pytest.approx(fmean(min(order[:drawn]) for order in orders))


def test_of_many_trials_nothing_is_lost_to_rounding():
    values = np.random.default_rng(0).normal(size=800).tolist()
    curve = expected_best([*values, math.inf])
    assert curve[0] == math.inf
    assert curve[1:] == sorted(curve[1:], reverse=True)
    assert curve[-1] == min(values)
    pairs = [min(pair) for pair in combinations(values[:40], 2)]
    assert expected_best(values[:40])[1] == pytest.approx(fmean(pairs))


def test_holms_adjustment_by_hand():
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_lies_between_no_adjustment_and_bonferronis_and_keeps_the_order(values: list[float]):
    adjusted = holm(values)
    for p, found in zip(values, adjusted, strict=True):
        assert p <= found <= min(1.0, len(values) * p)
    assert holm(values[::-1]) == adjusted[::-1]
    rank = sorted(range(len(values)), key=values.__getitem__)
    assert [adjusted[i] for i in rank] == sorted(adjusted)


def test_a_paired_t_test_by_hand():
    # t = 2 / (1 / sqrt(3)); with two degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    t = 2 * math.sqrt(3)
    assert paired_t([1.0, 2.0, 3.0]) == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert paired_t([2.0]) is None
    assert paired_t([0.5, 0.5]) == 0.0
    assert paired_t([0.0, 0.0]) == 1.0


@given(found=st.lists(NUMBERS, min_size=2, max_size=8).filter(lambda values: len(set(values)) > 1))
def test_an_interval_excludes_zero_just_when_the_t_test_rejects(found: list[float]):
    p, held = paired_t(found), interval(found)
    assert p is not None
    assert held.half is not None
    assert (abs(held.mean) > held.half) == (p < 0.05)


@given(found=st.lists(NUMBERS, min_size=1, max_size=8))
def test_the_permutation_test_counts_every_choice_of_signs(found: list[float]):
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, found, strict=True)))
        for signs in product((1, -1), repeat=len(found))
    ]
    assert sign_flips(found) == sum(s >= abs(sum(found)) for s in sums) / len(sums)


def test_of_many_pairs_some_choices_of_signs_stand_for_all():
    ones = [1.0] * (EXACT + 4)
    assert 0 < sign_flips(ones) < 1e-3
    mixed = [1.0] * 13 + [-1.0] * 7  # the probability that of 20 coins at least 13, or at most 7, fall alike
    exact = 2 * sum(math.comb(20, k) for k in range(13, 21)) / 2**20
    assert sign_flips(mixed) == pytest.approx(exact, abs=0.01)


def test_rounding_does_not_hide_a_tie():
    found = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert sign_flips(found) == sign_flips(found[::-1]) == 2 / 2**5


def test_pairs_are_made_by_seed():
    assert differences({3: 1.0, 1: 5.0, 7: 0.0}, {1: 2.0, 3: 4.0, 8: 1.0}) == [3.0, -3.0]
