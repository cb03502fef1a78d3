"""What a GPU did while it was profiled."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Kernel(NamedTuple):
    """Something the GPU did, in microseconds."""

    start: float
    end: float
    name: str

    @property
    def communicates(self) -> bool:
        """Whether it is a collective."""
        return "nccl" in self.name.lower()


def gpu_kernels(profiler: Any) -> list[Kernel]:
    """All that ran on the GPU, in order of start."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    found = [event for event in events if event.get("cat") in kinds]
    return sorted(Kernel(event["ts"], event["ts"] + event["dur"], event["name"]) for event in found)


def busy(kernels: Sequence[Kernel]) -> float:
    """Microseconds during which at least one of these runs; in order of start."""
    total, until = 0.0, float("-inf")
    for kernel in kernels:
        total += max(0.0, kernel.end - max(kernel.start, until))
        until = max(until, kernel.end)
    return total
