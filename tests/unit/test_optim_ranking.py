"""Who enters a buffer of few slots."""

from hypothesis import given
from hypothesis import strategies as st

from lowland.optim.ranking import Ranking


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20), st.integers(1, 6))
def test_without_decay_a_buffer_keeps_the_highest_priorities(priorities: list[float], size: int) -> None:
    ranking = Ranking(size, 1.0)
    for priority in priorities:
        ranking.take("b", priority)
    assert sorted(ranking.priorities("b")) == sorted(sorted(priorities)[-size:])


@given(st.lists(st.floats(0.0, 1e6), max_size=20), st.integers(1, 6), st.floats(0.0, 1.0))
def test_a_ranking_goes_on_from_its_state(priorities: list[float], size: int, decay: float) -> None:
    whole, half = Ranking(size, decay), Ranking(size, decay)
    for index, priority in enumerate(priorities):
        for name in ("a/b", "3"):
            turn = whole.take(name, priority + len(name))
            if index >= len(priorities) // 2:
                assert half.take(name, priority + len(name)) == turn
        if index + 1 == len(priorities) // 2:
            half.load(whole.state())


def test_an_equal_priority_is_turned_away_and_the_first_of_equals_leaves() -> None:
    ranking = Ranking(2, 1.0)
    ranking.take("b", 1.0)
    ranking.take("b", 1.0)
    assert ranking.take("b", 1.0).slot is None
    assert ranking.take("b", 1.5).slot == 0
