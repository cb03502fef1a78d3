"""Where the time goes between the command and the first training step."""

import time
from collections.abc import Mapping

import psutil

from lowland.trainers.monitor import Monitor, Progress

PHASES = ("imports", "ray", "checks", "worker", "data", "model", "engine", "first_step")
"""In order; each is the time since the one before it, the first since the process began."""


def command_started() -> float:
    """When this process began, in seconds since 1970."""
    return float(psutil.Process().create_time())


def durations(times: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each phase from the moments (seconds since 1970) at which they ended, and their total.

    Args:
        times: `command` and the phases that have ended.
    """
    before, seconds = times["command"], {}
    for phase in PHASES:
        if phase in times:
            seconds[phase] = times[phase] - before
            before = times[phase]
    return {**seconds, "total": before - times["command"]}


class FirstStep:
    """Collects the moments of one attempt and records them as `startup/*_seconds` after its first step.

    Args:
        times: the driver's moments.
        entered: when the worker's function was called.
    """

    def __init__(self, times: Mapping[str, float], entered: float) -> None:
        self._times = {**times, "worker": entered}

    def mark(self, phase: str) -> None:
        """Notes that a phase has ended."""
        self._times[phase] = time.time()

    def watch(self, monitor: Monitor) -> Monitor:
        """A monitor that records the start-up at the first progress and is `monitor` otherwise."""
        return _Watched(monitor, self)

    @property
    def here(self) -> float:
        """Seconds from `entered` to the last phase."""
        return max(self._times.values()) - self._times["worker"]

    def durations(self) -> dict[str, float]:
        """Seconds of each phase."""
        return durations(self._times)


class _Watched:
    def __init__(self, monitor: Monitor, first: FirstStep) -> None:
        self._monitor, self._first, self._done = monitor, first, False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._monitor.metrics(step, values)

    def progress(self, progress: Progress) -> None:
        if not self._done:
            self._done = True
            self._first.mark("first_step")
            seconds = self._first.durations()
            self._monitor.metrics(progress.step, {f"startup/{name}_seconds": value for name, value in seconds.items()})
            parts = ", ".join(
                f"{name.replace('_', ' ')} {value:.1f}" for name, value in seconds.items() if name != "total"
            )
            self._monitor.event(f"first step after {seconds['total']:.1f} s ({parts})")
        self._monitor.progress(progress)

    def event(self, text: str) -> None:
        self._monitor.event(text)

    def artifact(self, name: str, content: bytes) -> None:
        self._monitor.artifact(name, content)

    def stop_requested(self) -> bool:
        return self._monitor.stop_requested()
