"""Throughput, utilisation and where the time of a step goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lowland.trainers.hardware import device_peak_flops


class Meter:
    """Times the phases of the steps since the last reading.

    On a GPU phases are measured by events on its stream, so that timing waits for nothing; the
    reading waits once.

    Args:
        device: the training device.
        tokens_per_step: over all ranks; 0 for what has no tokens.
        examples_per_step: over all ranks.
        flops_per_step: model FLOPs over all ranks (forward and backward, no recomputation).
        world_size: ranks.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        tokens_per_step: int,
        examples_per_step: int,
        flops_per_step: float,
        world_size: int,
    ) -> None:
        self._device = device
        self._tokens, self._examples = tokens_per_step, examples_per_step
        peak = device_peak_flops(device)
        self._mfu_per_step_second = flops_per_step / (peak * world_size) if peak else None
        if device.type == "cuda":  # the process may have trained something else before
            torch.cuda.reset_peak_memory_stats(device)
        self.reset()

    def reset(self) -> None:
        """Starts a new interval now."""
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._steps = 0
        self._start = time.perf_counter()
        self._paused = 0.0

    @contextmanager
    def phase(self, name: str, *, on_device: bool = False) -> Iterator[None]:
        """Adds the time inside to a phase; `on_device` work is timed by the GPU itself."""
        if on_device and self._device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            yield
            last.record()
            self._events.append((name, first, last))
            return
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time inside out of the interval: evaluations and checkpoints."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def step(self) -> None:
        """Counts a step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """The metrics of the interval, and a new interval begins; empty without a step."""
        if self._steps == 0:
            return {}
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for name, first, last in self._events:
            self._seconds[name] += first.elapsed_time(last) / 1000
        step_seconds = (time.perf_counter() - self._start - self._paused) / self._steps
        tokens = {"perf/tokens_per_second": self._tokens / step_seconds} if self._tokens else {}
        values = {
            **tokens,
            "perf/samples_per_second": self._examples / step_seconds,
            "perf/step_seconds": step_seconds,
            **{f"perf/{name}_seconds": seconds / self._steps for name, seconds in self._seconds.items()},
        }
        if self._mfu_per_step_second is not None:
            values["perf/mfu"] = self._mfu_per_step_second / step_seconds
        if self._device.type == "cuda":
            values["perf/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        self.reset()
        return values
