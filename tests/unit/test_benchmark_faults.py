"""What the benchmark of killed searches counts."""

import os
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
from faults_checks import Found, not_kept, steps_of
from faults_cluster import led_by, marked
from faults_optimizer import MARK
from search_faults import Round, read_round, row


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


def test_what_a_driver_started_is_found_as_long_as_it_lives():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parent = psutil.Popen(
        [sys.executable, "-c", code], env={**os.environ, "FAULTS_OF_TEST": "this"}, start_new_session=True
    )
    try:
        while not (children := parent.children()):
            time.sleep(0.05)
        assert set(marked("FAULTS_OF_TEST", "this")) == {psutil.Process(parent.pid), *children}
        assert set(led_by(parent.pid)) == {psutil.Process(parent.pid), *children}
        assert marked("FAULTS_OF_TEST", "other") == []
        parent.kill()
        while parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        assert marked("FAULTS_OF_TEST", "this") == led_by(parent.pid) == children, "what outlives it counts"
    finally:
        for process in marked("FAULTS_OF_TEST", "this"):
            process.kill()
        parent.wait()


def test_steps_are_those_of_a_rank_in_order_of_time(tmp_path: Path):
    for attempt, rank, lines in ((2, 0, [(3, 7.5), (2, 7.0)]), (1, 0, [(1, 5.0), (2, 6.0)]), (1, 1, [(1, 5.1)])):
        text = "".join(f"{MARK} {step} at {when:.3f}\n" for step, when in lines)
        (tmp_path / f"attempt-{attempt}-rank-{rank}.log").write_text(text)
    assert steps_of(tmp_path, 0) == [1, 2, 2, 3]
    assert steps_of(tmp_path, 1) == [1]


def test_rounds_that_were_written_before_there_were_more_workers_are_read():
    assert read_round({"number": 1, "kind": "driver", "seed": 3, "found": {}}) == Round(1, "driver", 3, workers=1)
