"""Milliseconds and GB/s of one step of every optimizer, beside torch's fused AdamW and a copy.

    python benchmarks/optimizer_step.py --check --out optimizer_step.json
    python benchmarks/optimizer_step.py --sweep --methods adatamw           other sizes of blocks as well
    python benchmarks/optimizer_step.py --device cpu --tiny          a dry run

0.95 B parameters in fp32, split as a Llama has them: the list of its tensors (`list`), and one flat tensor with a
segment for each, as ZeRO gives them on one GPU (`flat`).  Medians of CUDA events around a step.  A method's bytes are
what it cannot avoid: each weight, gradient and state read once per pass that needs it, and written once; GB/s are those
bytes over the time, and % is of a large copy on the same device (bytes read and written) in the same run.  `host ms`
is how long `step()` keeps Python busy when the GPU is idle, and `waits` whether it makes Python wait for the GPU.
A method that fails or takes longer than --limit is printed as such, and the rest goes on.
"""

import argparse
import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from kernel_check import check
from kernel_sweep import sweep
from step_table import BASE, Row, show
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.optim import Fragment, Layout, LayoutOptimizer, Parameter, Segment
from lowland.optim.methods import METHODS

SLOW = ("critical_momenta", "critical_gradients", "soap", "rotated_adam")
"""Measured last: a step takes seconds, or memory for many copies of the gradients."""


class LateError(Exception):
    """A method took longer than it may."""


def main() -> None:
    """Measures and prints."""
    options = arguments()
    device = torch.device(options.device)
    report: dict[str, Any] = {"circumstances": circumstances(device), "rows": [], "check": [], "sweep": []}
    print(report["circumstances"], flush=True)
    begun = time.monotonic()
    report["copy_gb_per_second"] = copy_bandwidth(device, options.tiny)
    print(f"copy: {report['copy_gb_per_second']:.0f} GB/s", flush=True)
    shapes = llama(options.tiny)
    if options.sweep and device.type == "cuda":
        with limit(120, "sweep", report):
            for found in sweep(shapes, device):
                report["sweep"].append(found)
                print("sweep: " + ", ".join(f"{key} {value:.0f}" for key, value in found.items()), flush=True)
        free(device)
    names = [BASE, "torch fused SGD", *sorted(METHODS, key=lambda name: SLOW.index(name) if name in SLOW else -1)]
    if options.methods:
        names = [name for name in names if name == BASE or name in options.methods.split(",")]
    for name in names:
        # Whole tensors under ZeRO take messages between ranks: that is measured in training.
        whole = name in METHODS and METHODS[name].sees == "tensors"
        for layout in ("list",) if whole else ("list", "flat"):
            row = Row(layout, name)
            report["rows"].append(row)
            if time.monotonic() - begun > options.budget:
                row.error = "not started: --budget was spent"
                continue
            with limit(options.limit, row, report):
                measure(row, shapes, device, options.steps)
            print(f"{layout} {name}: {row.error or f'{row.milliseconds:.2f} ms'}", flush=True)
            free(device)
    show(report)
    if options.check and device.type == "cuda":
        with limit(120, "check", report):
            for name, error, good in check(device):
                report["check"].append({"what": name, "error": error, "good": good})
                print(f"check {'pass' if good else 'FAIL'}: {name}: {error:.1e}", flush=True)
        free(device)
    if options.out:
        options.out.write_text(json.dumps(report, indent=2, default=asdict) + "\n", encoding="utf-8")
    sys.exit(0 if all(found["good"] for found in report["check"]) else 1)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help=f"some of {', '.join(METHODS)}; all by default")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--limit", type=int, default=20, help="seconds that one method may take in one layout")
    parser.add_argument("--budget", type=float, default=240, help="seconds after which no method is started")
    parser.add_argument("--check", action="store_true", help="compare kernels with torch, last")
    parser.add_argument("--sweep", action="store_true", help="try other sizes of blocks and chunks first")
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to try the benchmark itself")
    return parser.parse_args()


def llama(tiny: bool) -> list[tuple[int, ...]]:
    """The shapes of a Llama's parameters, in order."""
    vocabulary, width, inner, layers = (512, 64, 192, 2) if tiny else (32000, 2048, 5632, 16)
    block = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner), (width,), (width,)]
    return [(vocabulary, width), *block * layers, (width,), (vocabulary, width)]


def measure(row: Row, shapes: list[tuple[int, ...]], device: torch.device, steps: int) -> None:
    """Times a method's step on a list of tensors or on one flat tensor."""
    if row.method in METHODS and METHODS[row.method].matrices_only:
        shapes = [shape for shape in shapes if len(shape) == 2]
    row.parameters = sum(torch.Size(shape).numel() for shape in shapes)
    optimizer = build(row, shapes, device)
    with timed(device) as events:
        optimizer.step()
    if events() > 1000:
        steps = 3
    for _ in range(min(steps, 5)):
        optimizer.step()
    synchronise(device)
    readings = []
    for _ in range(steps):
        with timed(device) as events:
            optimizer.step()
        readings.append(events)
    row.milliseconds = median(reading() for reading in readings)
    row.host_milliseconds = median(host_time(optimizer, device) for _ in range(min(steps, 10)))
    row.waits = waits(optimizer) if device.type == "cuda" else None


def build(row: Row, shapes: list[tuple[int, ...]], device: torch.device) -> Optimizer:
    """The optimizer over weights that have gradients."""
    if row.layout == "list":
        params = [nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes]
    else:
        params = [nn.Parameter(0.02 * torch.randn(row.parameters, device=device))]
    for p in params:
        p.grad = 1e-3 * torch.randn_like(p)
    optimizer = make(row.method, params)
    if row.layout == "flat" and isinstance(optimizer, LayoutOptimizer):
        optimizer.attach(flat_layout(shapes, params[0]))
    return optimizer


def make(name: str, params: list[nn.Parameter]) -> Optimizer:
    """One of torch's, or a row of the table with its example's arguments."""
    if name == BASE:
        return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.1, fused=True)
    if name == "torch fused SGD":
        return torch.optim.SGD(params, lr=1e-4, momentum=0.9, weight_decay=0.1, fused=True)
    method = METHODS[name]
    return method.make(params, **{**method.example, "lr": 1e-4, "weight_decay": 0.1})


def flat_layout(shapes: list[tuple[int, ...]], flat: Tensor) -> Layout:
    """One fragment that holds all tensors, one after the other."""
    parameters, segments, start = [], [], 0
    for index, shape in enumerate(shapes):
        parameters.append(Parameter(f"p{index}", shape, 0))
        segments.append(Segment(index, start, parameters[-1].numel, 0))
        start += parameters[-1].numel
    return Layout(tuple(parameters), (Fragment(flat, tuple(segments), 0, tuple(range(len(shapes)))),))


@contextmanager
def timed(device: torch.device) -> Iterator[Callable[[], float]]:
    """The milliseconds between entering and leaving, on the device's own clock; asked for later, to not wait here."""
    if device.type != "cuda":
        clock = [time.perf_counter()]
        yield lambda: 1000 * (clock[1] - clock[0])
        clock.append(time.perf_counter())
        return
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def milliseconds() -> float:
        end.synchronize()
        return float(begin.elapsed_time(end))

    begin.record()
    yield milliseconds
    end.record()


def host_time(optimizer: Optimizer, device: torch.device) -> float:
    """The milliseconds until `step` returns, begun with an idle GPU."""
    synchronise(device)
    begin = time.perf_counter()
    optimizer.step()
    return 1000 * (time.perf_counter() - begin)


def waits(optimizer: Optimizer) -> bool:
    """Whether a step makes Python wait for the GPU, by torch's own guard."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def copy_bandwidth(device: torch.device, tiny: bool) -> float:
    """GB/s, read and written, of a large copy on the device."""
    source = torch.zeros(1 << (20 if tiny else 30), device=device)
    target = torch.empty_like(source)
    readings = []
    for _ in range(23):
        with timed(device) as events:
            target.copy_(source)
        readings.append(events)
    return 2 * source.nbytes / median(reading() for reading in readings[3:]) / 1e6


@contextmanager
def limit(seconds: int, row: Any, report: Mapping[str, Any]) -> Iterator[None]:
    """Ends what is inside after so long, and keeps what went wrong."""

    def late(*_: object) -> None:
        raise LateError(f"longer than {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(row, Row):
            row.error = text
        else:
            report["check"].append({"what": row, "error": text, "good": False})
            print(f"{row} stopped: {text}", flush=True)
    finally:
        signal.alarm(0)


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Gives memory back, so that the next method has all of it."""
    if device.type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()


def circumstances(device: torch.device) -> str:
    """Hardware and versions."""
    found = []
    for package in ("torch", "triton"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{hardware}; Python {platform.python_version()}, {', '.join(found)}, CUDA {torch.version.cuda}"


if __name__ == "__main__":
    main()
