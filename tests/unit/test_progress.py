"""The progress display: a bar on a terminal, few plain lines elsewhere."""

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lowland.platform.progress import (
    PlainSchedule,
    ProgressDisplay,
    SummaryRow,
    format_count,
    format_seconds,
    summary_table,
)
from lowland.trainers.monitor import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def at(step, total=100, phase="training", loss=1.5):
    return Progress(step, total, tokens=step * 10, loss=loss, tokens_per_second=1234.5, phase=phase)


def train(steps, seconds_per_step, total=None, width=20, **kinds):
    out, clock = io.StringIO(), Clock()
    with ProgressDisplay(Console(file=out, width=width, **kinds), clock) as display:
        for step in range(1, steps + 1):
            clock.now += seconds_per_step
            display.update(at(step, total or steps))
            if step == 3:
                display.event("checkpoint written: runs/a/checkpoints/step-3 [not markup]")
    return out.getvalue()


def test_piped_output_is_plain_whole_lines_however_narrow():
    lines = train(100, 1.0).splitlines()
    assert lines[0] == "step 1/100 (1%)  loss 1.5000  1,234 tokens/s"
    assert "checkpoint written: runs/a/checkpoints/step-3 [not markup]" in lines
    assert lines[-1] == "step 100/100 (100%)  loss 1.5000  1,234 tokens/s  ETA 0.0 s"
    assert not any("\x1b" in line or "\r" in line for line in lines)
    assert 20 <= len(lines) <= 23


@pytest.mark.parametrize(("seconds_per_step", "most"), [(0.001, 4), (0.1, 13), (30.0, 102)])
def test_plain_lines_keep_to_their_pace(seconds_per_step, most):
    assert 3 <= len(train(100, seconds_per_step).splitlines()) <= most


def test_the_last_state_is_told_even_if_no_line_was_due():
    assert train(7, 0.001).splitlines()[-1].startswith("step 7/7")


def test_plain_lines_say_what_else_is_going_on():
    out, clock = io.StringIO(), Clock()
    with ProgressDisplay(Console(file=out), clock) as display:
        display.update(at(5, 10))
        clock.now += 11
        display.update(at(5, 10, phase="evaluating"))
    assert out.getvalue().splitlines()[-1].endswith("evaluating")


def test_a_terminal_gets_a_bar_and_events_above_it():
    text = train(50, 1.0, width=120, force_terminal=True, color_system=None)
    assert "50/50" in text
    assert "loss 1.5000" in text
    assert "1,234 tokens/s" in text
    assert "ETA 0.0 s" in text
    assert "checkpoint written: runs/a/checkpoints/step-3 [not markup]" in text
    assert text.count("\n") < 15  # redrawn in place: not a line per step


def test_time_left_counts_only_the_steps_of_this_attempt():
    out, clock = io.StringIO(), Clock()
    with ProgressDisplay(Console(file=out, width=200), clock) as display:
        display.update(at(50))
        clock.now += 20
        display.update(at(60))
    assert "ETA 1:20" in out.getvalue()


def test_a_restart_from_an_earlier_step_starts_the_pace_anew():
    out, clock = io.StringIO(), Clock()
    with ProgressDisplay(Console(file=out, width=200), clock) as display:
        display.update(at(50))
        clock.now += 1000
        display.update(at(40))
        clock.now += 10
        display.update(at(50))
    assert out.getvalue().splitlines()[-1].endswith("ETA 50.0 s")


@given(st.lists(st.tuples(st.floats(0, 60), st.integers(0, 50)), max_size=200))
def test_plain_lines_are_never_closer_than_a_second_nor_repeated(moves):
    clock, lines = Clock(), []
    schedule = PlainSchedule(clock)
    step = 0
    for seconds, steps in moves:
        clock.now += seconds
        step += steps
        if schedule.due(at(step, 1000)):
            schedule.printed(at(step, 1000))
            lines.append((clock.now, step))
    for before, after in itertools.pairwise(lines):
        assert after[0] - before[0] >= 1.0
        assert after[1] != before[1]


def test_the_summary_shows_every_number_and_a_dash_for_what_is_unknown():
    out = io.StringIO()
    rows = [
        SummaryRow("adamw", 1.23456, 3.4369, 1.7811, 9876.5, 83.2),
        SummaryRow("adatamw", None, None, None, None, 7.0),
    ]
    Console(file=out, width=100).print(summary_table(rows))
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["run", "loss", "perplexity", "bits/byte", "tokens/s", "time"]
    assert lines[1].split() == ["adamw", "1.2346", "3.437", "1.7811", "9,876", "1:23"]
    assert lines[2].split() == ["adatamw", "-", "-", "-", "-", "7.0", "s"]


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1:00"), (7384, "2:03:04")])
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12.4, "12"), (93_600, "93,600"), (1_234_567, "1.23 M")])
def test_rates(count, text):
    assert format_count(count) == text
