"""CPU, memory and GPU use of a node, as metrics of the run."""

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class SystemMonitor:
    """Measures this machine in a thread; one per node, in the worker with local rank 0.

    The metrics are named as MLflow's own monitor names them, below `system/<node>/`, where its UI has a page for
    them.  They go through the same writer as all others: no further connection to the store.  Their step is the
    number of seconds since the run was first started, so that attempts follow one another.

    Args:
        log: takes a step and its metrics and returns at once, as `MetricWriter.log` does.
        node: name of the node, unlike those of the run's other nodes.
        created: when the run was first started, in seconds since 1970.
        interval: seconds between two measurements.
    """

    def __init__(
        self, log: Callable[[int, Mapping[str, float]], None], node: str, created: float, interval: float = 10.0
    ) -> None:
        self._log = log
        self._prefix = f"system/{re.sub(r'[^A-Za-z0-9_.-]', '_', node)}/"
        self._created = created
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lowland-system-metrics", daemon=True)

    def start(self) -> None:
        """Starts measuring."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Measures once more and ends, so that a short run has a measurement too."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            cpu_metrics()  # the CPU's use is counted from the previous call
            gpus = gpu_handles()
            while True:
                stopping = self._stopping.wait(self._interval)
                values = cpu_metrics() | gpu_metrics(gpus)
                step = max(0, int(time.time() - self._created))
                self._log(step, {self._prefix + key: value for key, value in values.items()})
                if stopping:
                    return
        except Exception:
            log.warning("this node's CPU, memory and GPU use is no longer recorded", exc_info=True)


def cpu_metrics() -> dict[str, float]:
    """Use of all cores since the previous call, and of the memory now."""
    import psutil

    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
    }


def gpu_handles() -> list[object]:
    """NVML's handle of each GPU of the node; empty without nvidia-ml-py, a driver or a GPU."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def gpu_metrics(handles: list[object]) -> dict[str, float]:
    """Use, memory and power of each GPU; a value that a GPU does not give is left out."""
    return {f"gpu_{index}_{key}": value for index, handle in enumerate(handles) for key, value in _gpu(handle).items()}


def _gpu(handle: object) -> dict[str, float]:
    import pynvml

    values: dict[str, float] = {}
    try:
        values["utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        values["memory_usage_megabytes"] = memory.used / 1e6
        values["memory_usage_percentage"] = 100 * memory.used / memory.total
        values["power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    except pynvml.NVMLError as error:
        log.debug("a GPU does not tell everything: %s", error)
    return values
