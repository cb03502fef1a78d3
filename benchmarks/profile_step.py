"""Where the GPU's time goes in a step of lowland: kernels, communication that is not hidden, and gaps.

`gpu_throughput.py --profile FILE` runs it; the step is lowland's own task, engine and data, without Ray and tracking.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from baselines import join
from common import Variant, Workload, free_port
from gpu_time import Kernel, busy, gpu_kernels
from through_lowland import recipe
from torch.multiprocessing.spawn import start_processes
from torch.profiler import ProfilerActivity

from lowland.trainers.engines import Engine, build_engine
from lowland.trainers.recipe import CausalLMConfig
from lowland.trainers.tasks import Task, build_task
from lowland.trainers.world import World

WARM_UP, STEPS = 8, 3


def profile(workload: Workload, variant: Variant, output: Path) -> None:
    """Profiles three steps of the variant on all workers and writes rank 0's to a text file."""
    start_processes(_rank, (workload, variant, free_port(), output.absolute()), nprocs=workload.workers)
    print(output.read_text(encoding="utf-8"))


def _rank(rank: int, workload: Workload, variant: Variant, port: int, output: Path) -> None:
    device = join(workload, rank, port)
    world = World.current(device)
    fields = recipe(workload, variant, "profile")
    config = CausalLMConfig.model_validate({k: v for k, v in fields.items() if k in CausalLMConfig.model_fields})
    task = build_task(config, world)
    module = task.build_module()
    engine = build_engine(module, config, bf16=task.bf16, accumulation=task.sizes.accumulation, world=world)
    steps = task.steps(0)
    train(task, engine, steps, WARM_UP, device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with torch.profiler.profile(activities=activities) as profiler:
        train(task, engine, steps, STEPS, device)
    if rank == 0:
        output.write_text(report(profiler, variant), encoding="utf-8")
    dist.barrier()
    steps.close()
    engine.close()
    dist.destroy_process_group()


def train(task: Task, engine: Engine, steps: Any, count: int, device: torch.device) -> None:
    """So many steps as the training loop does them, to the end of the GPU's work."""
    for _ in range(count):
        batch = next(steps)
        last = len(batch.micro_batches) - 1
        for index, micro in enumerate(batch.micro_batches):
            inputs = {k: None if x is None else x.to(device, non_blocking=True) for k, x in micro.items()}
            engine.accumulate(inputs, scale=1 / batch.weight, last=index == last)
        engine.step(1e-4)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(profiler: Any, variant: Variant) -> str:
    """The summary as text."""
    kernels = gpu_kernels(profiler)
    order = "self_device_time_total" if kernels else "self_cpu_time_total"
    parts = [f"{variant}\nper step, mean of {STEPS}\n"]
    if kernels:
        parts += [occupation(kernels), top_kernels(kernels), gaps(kernels)]
    parts.append(profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80))
    return "\n".join(parts)


def occupation(kernels: Sequence[Kernel]) -> str:
    """How much of the time the GPU computes, only communicates, or waits."""
    whole = max(k.end for k in kernels) - kernels[0].start
    computing = busy([k for k in kernels if not k.communicates])
    communicating = busy([k for k in kernels if k.communicates])
    either = busy(kernels)
    rows = {
        "step": whole,
        "computing": computing,
        "communicating": communicating,
        "communicating, not hidden behind computing": either - computing,
        "idle": whole - either,
    }
    return "".join(f"{v / STEPS / 1000:9.2f} ms {v / whole:6.1%}  {name}\n" for name, v in rows.items())


def top_kernels(kernels: Sequence[Kernel], count: int = 40) -> str:
    """The kernels that take most of the time."""
    time, calls = defaultdict[str, float](float), defaultdict[str, int](int)
    for kernel in kernels:
        time[kernel.name] += kernel.end - kernel.start
        calls[kernel.name] += 1
    names = sorted(time, key=lambda name: -time[name])[:count]
    return "".join(f"{time[n] / STEPS / 1000:9.2f} ms {calls[n] / STEPS:7.1f} calls  {n[:120]}\n" for n in names)


def gaps(kernels: Sequence[Kernel], count: int = 25) -> str:
    """The longest times in which the GPU waits, with what ran before and after."""
    found, last = [], kernels[0]
    for kernel in kernels[1:]:
        found.append((kernel.start - last.end, last.name[:60], kernel.name[:60]))
        last = max(last, kernel, key=lambda k: k.end)
    lines = [
        f"{gap / 1000:9.3f} ms idle after {before}, before {after}\n" for gap, before, after in sorted(found)[::-1]
    ]
    return f"longest gaps of {STEPS} steps:\n" + "".join(lines[:count])
