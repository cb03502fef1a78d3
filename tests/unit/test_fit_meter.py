"""Where the time of a step goes, by a clock that the test moves."""

from typing import Any

import pytest
import torch

from lowland.trainers import meter as module
from lowland.trainers.meter import Meter


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def meter(**changes: Any) -> Meter:
    numbers: dict[str, Any] = {"tokens_per_step": 60, "examples_per_step": 6, "flops_per_step": 1e12, "world_size": 2}
    return Meter(torch.device("cpu"), **{**numbers, **changes})


def one_step(meter: Meter, clock: Clock, *, data: float, work: float, rest: float = 0.0) -> None:
    with meter.phase("data"):
        clock.now += data
    with meter.phase("forward_backward", on_device=True):
        clock.now += work
    clock.now += rest
    meter.step()


def test_means_over_the_steps_of_an_interval(clock: Clock) -> None:
    timer = meter()
    one_step(timer, clock, data=1, work=3, rest=1)
    one_step(timer, clock, data=3, work=3, rest=1)
    assert timer.read() == {
        "perf/step_seconds": 6.0,
        "perf/tokens_per_second": 10.0,
        "perf/samples_per_second": 1.0,
        "perf/data_seconds": 2.0,
        "perf/forward_backward_seconds": 3.0,
    }


def test_intervals_follow_each_other_without_a_gap(clock: Clock) -> None:
    timer = meter()
    one_step(timer, clock, data=0, work=2)
    assert timer.read()["perf/step_seconds"] == 2
    clock.now += 1
    one_step(timer, clock, data=0, work=3)
    values = timer.read()
    assert values["perf/step_seconds"] == 4
    assert values["perf/forward_backward_seconds"] == 3


def test_evaluations_and_checkpoints_are_left_out(clock: Clock) -> None:
    timer = meter()
    one_step(timer, clock, data=1, work=1)
    with timer.pause():
        clock.now += 500
    one_step(timer, clock, data=1, work=1)
    assert timer.read()["perf/step_seconds"] == 2
    with timer.pause():
        clock.now += 500
    one_step(timer, clock, data=1, work=4)
    assert timer.read()["perf/step_seconds"] == 5, "a pause counts for its own interval"


def test_time_before_the_first_step_can_be_dropped(clock: Clock) -> None:
    timer = meter()
    clock.now += 1000
    timer.reset()
    one_step(timer, clock, data=0, work=1)
    assert timer.read()["perf/step_seconds"] == 1


def test_nothing_without_a_step(clock: Clock) -> None:
    timer = meter()
    clock.now += 1
    assert timer.read() == {}


def test_utilisation_is_of_all_devices(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_peak_flops", lambda device: 1e12)
    timer = meter(flops_per_step=4e12, world_size=2)
    one_step(timer, clock, data=0, work=5)
    assert timer.read()["perf/mfu"] == pytest.approx(4e12 / (2 * 1e12 * 5))


def test_no_utilisation_where_the_peak_is_unknown(clock: Clock) -> None:
    timer = meter()
    one_step(timer, clock, data=0, work=5)
    assert "perf/mfu" not in timer.read()
