"""What the benchmark of killed searches counts."""

from collections import Counter

from faults_checks import Found, not_kept
from search_faults import Round, row


def test_values_that_are_gone_changed_or_doubled_are_counted_each_once():
    values = {(0, 3): 1.0, (0, 9): 0.5, (1, 3): 2.0, (2, 3): 4.0}
    times = Counter({(0, 3): 3, (0, 9): 1, (1, 3): 2, (2, 3): 1})
    first = {(0, 3): 1.0, (1, 3): 7.0}
    second = {**first, (3, 3): 5.0, (3, 9): 5.0}
    assert not_kept(values, times, [(first, set()), (second, set())]) == ({(3, 3), (3, 9)}, {(0, 3), (1, 3)})
    assert not_kept(values, Counter(list(values)), [({}, set()), (dict(values), set())]) == (set(), set())


def test_what_was_kept_once_is_a_number_of_values_not_of_complaints():
    found = Found(wrong=["what the journal had at a kill is not in it at the end"], values=10, lost=4)
    assert row([Round(0, "driver", 0, found=found), Round(1, "driver", 1, found=Found(values=5))])[3:5] == [15, 11]
