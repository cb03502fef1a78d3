"""Early stopping as pure decisions, worked out by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowland.platform.search.policies import Fixed, Hyperband, Median, Promotion, Stopping, default_first, rungs
from lowland.platform.search.trials import Segment, Status, TrialView


def trial(number: int, status: Status = "paused", **curve: float) -> TrialView:
    """A trial with values at the resources r1, r3 ..."""
    values = {int(key[1:]): value for key, value in curve.items()}
    return TrialView(number, {}, values, status, max(values, default=0))


@given(st.integers(1, 200), st.integers(1, 200), st.integers(2, 5))
def test_rungs_rise_to_the_whole_training(first: int, full: int, factor: int):
    levels = rungs(min(first, full), full, factor)
    assert levels[-1] == full
    assert list(levels) == sorted(set(levels))
    assert all(upper <= factor * lower * 1.5 for lower, upper in pairwise(levels))


def test_the_first_rung_is_a_seventeenth():
    assert Promotion(52).levels == (3, 9, 27, 52)
    assert default_first(51) == 3
    assert default_first(1) == 1
    with pytest.raises(ValueError, match=r"\[1, 52\]"):
        Promotion(52, first=60)
    with pytest.raises(ValueError, match="factor >= 2"):
        Promotion(52, factor=1)


def test_promotion_takes_the_best_third_of_a_rung_once():
    policy = Promotion(27, first=3)
    two = [trial(0, r3=0.5), trial(1, r3=0.4)]
    assert policy.resume(two) is None, "a third of two is none"
    three = [*two, trial(2, r3=0.9)]
    assert policy.resume(three) == Segment(1, 3, 9)
    gone_on = [two[0], TrialView(1, {}, {3: 0.4}, "running", 9), three[2]]
    assert policy.resume(gone_on) is None, "the one that deserved it is on its way"


def test_promotion_prefers_the_highest_rung():
    high = [trial(n, r3=0.1 * n, r9=0.1 * n) for n in range(3)]
    low = [trial(n, r3=0.01 * n) for n in range(3, 9)]
    assert Promotion(27, first=3).resume([*high, *low]) == Segment(0, 9, 27)


def test_a_value_that_came_late_can_still_be_promoted():
    """Of six in a rung two go on, although the second best was not among the best third of the first three."""
    policy = Promotion(27, first=3)
    trials = [TrialView(0, {}, {3: 0.1}, "running", 9), *[trial(n, r3=0.1 + 0.1 * n) for n in range(1, 6)]]
    assert policy.resume(trials) == Segment(1, 3, 9)


def overtaken() -> list[TrialView]:
    """Of six at the first rung two went on; two better ones came after them."""
    gone = [TrialView(n, {}, {3: 0.5 + 0.1 * n, 9: 0.5}, "finished", 27) for n in range(2)]
    return [*gone, trial(2, r3=0.8), trial(3, r3=0.9), trial(4, r3=0.2), trial(5, r3=0.1)]


def test_while_new_trials_are_under_way_no_more_than_a_third_go_on():
    policy, rung = Promotion(27, first=3), overtaken()
    new = TrialView(6, {}, {}, "running", 3)
    assert policy.resume(rung) == Segment(5, 3, 9), "nothing is under way that may be better still"
    assert policy.resume([*rung, TrialView(6, {}, {3: 1.0}, "running", 9)]) == Segment(5, 3, 9)
    assert policy.resume([*rung, new]) is None, "a third of six went on"
    three = [trial(n, r3=0.9) for n in range(7, 10)]
    assert policy.resume([*rung, new, *three]) == Segment(5, 3, 9), "a third of nine is one more"


def test_earlier_trainings_do_not_use_up_the_places_of_new_ones():
    earlier = [TrialView(n, {}, {3: 0.5 + 0.1 * n}, "stopped", 27, source=f"before, trial {n}") for n in range(6)]
    new = [trial(6, r3=0.1), TrialView(7, {}, {}, "running", 3)]
    assert Promotion(27, first=3).resume([*earlier, *new]) == Segment(6, 3, 9)


def test_stopping_lets_the_first_go_on_and_later_ones_by_rank():
    policy = Stopping(27, first=3)
    first = trial(0, "running", r3=0.5)
    assert policy.after(first, [first]) == "go on"
    second = trial(1, "running", r3=0.6)
    assert policy.after(second, [first, second]) == "stop"
    third = trial(2, "running", r3=0.4)
    assert policy.after(third, [first, second, third]) == "go on"
    assert policy.resume([first, second, third]) is None


def test_the_median_rule_waits_for_enough_others():
    policy = Median(27, first=3)
    others = [trial(n, "finished", r3=0.1 * n) for n in range(1, 4)]
    bad = trial(9, "running", r3=0.9)
    assert policy.after(bad, [*others[:2], bad]) == "go on"
    assert policy.after(bad, [*others, bad]) == "stop"
    assert policy.after(trial(8, "running", r3=0.15), [*others, bad]) == "go on"


def test_fixed_trains_the_best_of_each_whole_trainings_worth():
    policy = Fixed(9, first=3)
    assert policy.resume([trial(0, r3=0.2), trial(1, r3=0.1)]) is None
    three = [trial(0, r3=0.2), trial(1, r3=0.1), trial(2, r3=0.3)]
    assert policy.resume(three) == Segment(1, 3, 9)
    assert Fixed(9, first=9).resume([]) is None


def test_hyperband_spreads_trials_over_brackets_that_promote_among_their_own():
    policy = Hyperband(27, first=3)
    begun = [policy.begin(number) for number in range(18)]
    assert [begun.count(rung) for rung in (3, 9, 27)] == [9, 6, 3]
    own = [number for number in range(60) if policy.begin(number) == 9][:3]
    trials = [trial(number, r9=0.1 * number) for number in own]
    cheap = [number for number in range(60) if policy.begin(number) == 3][:2]
    assert policy.resume([*trials, *[trial(n, r3=0.01, r9=0.01) for n in cheap]]) == Segment(own[0], 9, 27)
