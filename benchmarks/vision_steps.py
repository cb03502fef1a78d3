"""Steps of one loop that trains an image classifier, timed: through lowland, or plain torch.

python benchmarks/vision_steps.py JOB.json RESULT.json     (started by vision_throughput.py)
"""

import gc
import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from common import middle, write_json
from gpu_time import busy, gpu_kernels
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification

from lowland.trainers.data.images.augment import CROP_NUMBERS, part_of_image
from lowland.trainers.data.images.decode import decode
from lowland.trainers.engines import torch_engine
from lowland.trainers.fit import Places, fit
from lowland.trainers.hardware import device_peak_flops
from lowland.trainers.meter import Meter
from lowland.trainers.models import ImageInput, classifier_sizes
from lowland.trainers.monitor import SilentMonitor
from lowland.trainers.recipe import ImageClassificationConfig, ImageModelConfig
from lowland.trainers.world import World

CLASSES, MEAN, STD = 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AHEAD = 4
"""Batches that are made ahead, in both loops."""


@dataclass(frozen=True)
class Job:
    """What is timed."""

    loop: Literal["lowland", "waiting", "plain"]
    """`waiting` is lowland where it reads every norm before the optimizer steps."""
    model: dict[str, Any]
    """Fields of a transformers configuration."""
    optimizer: dict[str, Any]
    """As in a recipe."""
    max_grad_norm: float | None
    data: dict[str, str]
    """By kind, a folder with train.parquet and test.parquet: `memory` is decoded once and mirrored; of `jpeg` each
    step decodes random parts."""
    size: int
    batch: int
    steps: int
    window: int
    threads: int
    device: str
    bf16: bool
    compile: bool
    graphs: bool
    """Whether the compiled network's kernels are CUDA graphs, in both loops."""
    idle: bool
    """Whether a further window is profiled."""


@dataclass(frozen=True)
class Timing:
    """What a loop took, medians of the windows after the first third of the steps."""

    samples_per_second: float
    readings: list[float]
    split: dict[str, float]
    """Seconds of a step by phase, `step` the whole; `idle`, if asked for, is what the GPU does nothing in."""
    memory_gib: float | None
    mfu: float | None


def main(job: Path, result: Path) -> None:
    """Times the loop on each kind of data."""
    todo, found = Job(**json.loads(job.read_text(encoding="utf-8"))), {}
    torch.set_num_threads(todo.threads)
    torch.set_float32_matmul_precision("high")
    if todo.loop == "waiting":
        torch_engine.skips_on_device = lambda optimizer: False
    for kind in todo.data:
        end = End(todo)
        windows = (plain if todo.loop == "plain" else through_lowland)(todo, kind, end)
        found[kind] = asdict(timing(todo, windows, end.idle))
        print(kind, found[kind], flush=True)
        gc.collect()  # what a training holds in cycles, before the next one needs the memory
    write_json(result, found)


class End:
    """Says when there are windows enough; before, if the job wants it, one more is profiled."""

    def __init__(self, job: Job) -> None:
        self._job, self.idle = job, dict[str, float]()
        self._profiler: Any = None

    def reached(self, step: int) -> bool:
        """Whether it is reached with the window that ends with this step."""
        if step < self._job.steps or not self._job.idle:
            return step >= self._job.steps
        if self._profiler is None:
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.start()
            return False
        self._profiler.stop()
        kernels = gpu_kernels(self._profiler)
        whole = max(kernel.end for kernel in kernels) - kernels[0].start
        self.idle = {"idle": (whole - busy(kernels)) / 1e6 / self._job.window}
        return True


def timing(job: Job, windows: Mapping[int, Mapping[str, float]], idle: Mapping[str, float]) -> Timing:
    """What the windows, by their last step, say."""
    first = -(-job.steps // 3)
    kept = [values for step, values in windows.items() if first + job.window <= step < job.steps + job.window]
    phases = ("step", "data", "forward_backward", "optimizer", "logging")
    split = {
        name: middle(v[f"perf/{name}_seconds"] for v in kept) for name in phases if f"perf/{name}_seconds" in kept[0]
    }
    readings = [values["perf/samples_per_second"] for values in kept]
    last = kept[-1]
    return Timing(middle(readings), readings, {**split, **idle}, last.get("perf/gpu_memory_gib"), last.get("perf/mfu"))


class MeasuredError(Exception):
    """There are windows enough; evaluation, checkpoint and export are not wanted."""


class Windows(SilentMonitor):
    """Keeps what lowland records of its steps, and ends the training when there is enough."""

    def __init__(self, end: End) -> None:
        self._end, self.found = end, dict[int, Mapping[str, float]]()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps a window."""
        if "perf/step_seconds" in values:
            self.found[step] = values
            if self._end.reached(step):
                raise MeasuredError


def through_lowland(job: Job, kind: str, end: End) -> dict[int, Mapping[str, float]]:
    """Windows of `lowland.trainers.fit` in this process."""
    windows = Windows(end)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(
                recipe(job, kind),
                world=World.current(torch.device(job.device)),
                monitor=windows,
                places=Places(folder, None),
                card=lambda metrics: "",
                metadata={},
            )
        except MeasuredError:
            return windows.found
    raise RuntimeError("the training ended before its measurement")


def recipe(job: Job, kind: str) -> ImageClassificationConfig:
    """The job's recipe; it never comes to its evaluation."""
    crop = {} if kind == "memory" else {"resized_crop": {}}
    sections: dict[str, Any] = {
        "task": "image-classification",
        "length": f"{job.steps + job.window + 1} steps",
        "model": {
            "config": job.model,
            "dtype": "bfloat16" if job.bf16 else "float32",
            "channels_last": True,
            "compile": job.compile,
            "cuda_graphs": job.graphs,
        },
        "data": {
            "path": f"{job.data[kind]}/train.parquet",
            "held_out_path": f"{job.data[kind]}/test.parquet",
            "classes": CLASSES,
            "size": job.size,
            "cache": "always" if kind == "memory" else "never",
            "mean": MEAN,
            "std": STD,
            "threads": job.threads,
            "prefetch": AHEAD,
            "bad_rows": "skip",  # classes without an image are no mistake here
        },
        "augmentation": {"flip": 0.5, **crop},
        "optimizer": job.optimizer,
        "batch": {"micro_batch": job.batch, "max_grad_norm": job.max_grad_norm},
        "sharding": {"engine": "torch"},
        "evaluation": {"every": None, "pictures": False},
        "checkpoints": {"every": None, "export": False},
        "log_every": job.window,
    }
    return ImageClassificationConfig.model_validate(sections)


def plain(job: Job, kind: str, end: End) -> dict[int, Mapping[str, float]]:
    """Windows of a loop as one writes it in torch: no schedule, checks or records."""
    device = torch.device(job.device)
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{"num_labels": CLASSES, "image_size": job.size, **job.model})
    network = AutoModelForImageClassification.from_config(config)
    network = network.to(device, memory_format=torch.channels_last)
    step = training_step(job, network, device)
    meter = Meter(
        device, tokens_per_step=0, examples_per_step=job.batch, flops_per_step=flops(job, device), world_size=1
    )
    found: dict[int, Mapping[str, float]] = {}
    batches = Batches(Path(job.data[kind]) / "train.parquet", job, in_memory=kind == "memory")
    stream = batches.stream()
    for index in count(1):
        with meter.phase("data"):
            images, labels = next(stream)
        step(images, labels, meter)
        meter.step()
        if index % job.window == 0:
            found[index] = meter.read()
            if end.reached(index):
                break
    stream.close()  # type: ignore[attr-defined]
    return found


def training_step(job: Job, network: nn.Module, device: torch.device) -> Callable[[Tensor, Tensor, Meter], None]:
    """A step on a batch of bytes [B, 3, S, S] and labels [B], from the CPU."""
    forward = torch.compile(network, mode="reduce-overhead" if job.graphs else None) if job.compile else network
    chosen = dict(job.optimizer)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[chosen.pop("name")]
    optimizer = kind(network.parameters(), fused=True, **chosen)
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (MEAN, STD))

    def step(images: Tensor, labels: Tensor, meter: Meter) -> None:
        with meter.phase("forward_backward", on_device=True):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            seen = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=job.bf16):
                logits = forward(seen).logits
            functional.cross_entropy(logits.float(), labels).backward()
        with meter.phase("optimizer", on_device=True):
            if job.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), job.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    return step


def flops(job: Job, device: torch.device) -> float:
    """Of a step, forward and backward; only where a GPU's peak is known, since counting takes a second."""
    if device_peak_flops(device) is None:
        return 0.0
    classes = tuple(str(number) for number in range(CLASSES))
    seen = ImageInput(job.size, 3, MEAN, STD, classes)
    return 3.0 * classifier_sizes(ImageModelConfig(config=job.model), seen)[1] * job.batch


class Batches:
    """Batches made in threads, as `DataLoader` makes them in processes, in pinned memory for a GPU."""

    def __init__(self, path: Path, job: Job, *, in_memory: bool) -> None:
        table = pq.read_table(path)
        self._files, self._labels = table["image"].to_pylist(), torch.tensor(table["label"].to_pylist())
        self._job, self._pin = job, job.device.startswith("cuda")
        self._pool = ThreadPoolExecutor(job.threads)
        self._pixels = torch.stack(list(self._pool.map(self._whole, self._files))) if in_memory else None

    def stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end, some made ahead."""
        with ThreadPoolExecutor(AHEAD) as makers:
            ahead: deque[Future[tuple[Tensor, Tensor]]] = deque(makers.submit(self._batch, n) for n in range(AHEAD))
            try:
                for index in count(AHEAD):
                    batch = ahead.popleft().result()
                    ahead.append(makers.submit(self._batch, index))
                    yield batch
            finally:
                makers.shutdown(cancel_futures=True)

    def _batch(self, index: int) -> tuple[Tensor, Tensor]:
        chance = torch.Generator().manual_seed(index)
        rows = torch.randint(len(self._files), (self._job.batch,), generator=chance)
        if self._pixels is not None:
            images = self._pixels[rows]
        else:
            images = torch.stack(list(self._pool.map(self._part, rows.tolist(), range(index, index + len(rows)))))
        mirrored = torch.rand(len(rows), generator=chance) < 0.5
        images[mirrored] = images[mirrored].flip(-1)
        labels = self._labels[rows]
        return (images.pin_memory(), labels.pin_memory()) if self._pin else (images, labels)

    def _whole(self, file: bytes) -> Tensor:
        return torch.from_numpy(decode(file, 3, size=self._job.size))

    def _part(self, row: int, seed: int) -> Tensor:
        numbers = np.random.default_rng(seed).random(CROP_NUMBERS)
        part = partial(part_of_image, numbers, area=(0.08, 1.0), ratio=(0.75, 4 / 3))
        return torch.from_numpy(decode(self._files[row], 3, size=self._job.size, crop=part))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
