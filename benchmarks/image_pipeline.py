"""Images per second and core of reading and augmenting, beside torchvision's transforms with torch's DataLoader.

    pip install --no-deps --target torchvision-alone torchvision==0.28.0
    PYTHONPATH=torchvision-alone python benchmarks/image_pipeline.py

0.28 is torchvision's version for torch 2.13, of any build; without torchvision lowland is measured alone.  The loads
are small images in memory, as CIFAR-10's, and JPEG files in memory that are decoded, cropped and resized to 224 x 224,
as ImageNet's.  Both are made here: smooth random images, which compress about as photographs do.  Every pipeline gives
shuffled batches of bytes and labels ahead of their use: lowland by threads, the DataLoader by one worker process;
torchvision's transforms act on Pillow's images, or on tensors.  All of it is on one core with one thread of torch, and
counted is the CPU time of this process and its children, so that other load on the machine counts as little as it can.
The pipelines take turns, --rounds times; the table has least and greatest.  MixUp is not compared: lowland blends on
the network's device.
"""

import argparse
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision_pipeline
from PIL import Image

from lowland.trainers.data.images.batches import TrainImages
from lowland.trainers.data.images.data import open_images
from lowland.trainers.recipe import AugmentationConfig, ImageDataConfig

SHAPE = (375, 500)
"""Height and width of the JPEG files: ImageNet's commonest."""
AHEAD = 2
"""Batches made ahead, which is the DataLoader's own choice for a worker."""
SKIPPED = 10
"""Batches that do not count."""


@dataclass(frozen=True)
class Load:
    """What is done to which images."""

    name: str
    augmentation: dict[str, Any]
    shape: tuple[int, int] = (32, 32)
    """Height and width of the images as they are stored."""
    size: int = 32
    """Side of what the network sees; images of this size are kept decoded."""
    images: int = 2000
    batch: int = 128

    def __str__(self) -> str:
        height, width = self.shape
        stored = "in memory" if height == self.size else f"JPEG, to {self.size} × {self.size}"
        return f"{width} × {height} {stored}: {self.name}"


LOADS = (
    Load("crop, flip", {"padding": 4, "flip": 0.5}),
    Load("crop, flip, RandAugment", {"padding": 4, "flip": 0.5, "randaugment": {}}),
    Load("crop, flip, erasing, CutMix", {"padding": 4, "flip": 0.5, "erasing": {}, "cutmix": 1.0}),
    Load("resized crop, flip", {"resized_crop": {}, "flip": 0.5}, SHAPE, 224, images=128, batch=32),
)


def smooth(seed: int, height: int, width: int) -> Image.Image:
    """A random image without sharp edges, with a little noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 25 + 2, width // 25 + 2, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((image + generator.integers(-6, 7, image.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image) -> bytes:
    """As a JPEG file of common quality."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write(path: Path, images: list[bytes]) -> Path:
    """A Parquet file."""
    pq.write_table(pa.table({"image": images, "label": [i % 10 for i in range(len(images))]}), path)
    return path


def rate(stream: Iterator[Any], size: int, seconds: float) -> float:
    """Images per second of CPU time of this process and its children, of a stream of batches."""
    for _ in range(SKIPPED):
        next(stream)
    children = psutil.Process().children()

    def spent() -> float:
        return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)

    start, turns = spent(), 0
    while (now := spent() - start) < seconds:
        turns += 1
        next(stream)
    return turns * size / now


def ours(path: Path, load: Load) -> Iterator[Any]:
    """Batches from lowland."""
    fields = {"path": str(path), "size": load.size, "threads": 1, "mean": [0.5] * 3, "std": [0.25] * 3}
    fields["cache"] = "always" if load.shape[0] == load.size else "never"
    return iter(
        TrainImages(
            open_images(ImageDataConfig.model_validate(fields)).train,
            AugmentationConfig.model_validate(load.augmentation),
            colour=torch.tensor([128] * 3, dtype=torch.uint8),
            seed=0,
            micro_batch=load.batch,
            prefetch=AHEAD,
        )
    )


def measured(load: Load, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images per second by pipeline and round."""
    with TemporaryDirectory() as folder:
        files = [encoded(smooth(i, *load.shape)) for i in range(load.images)]
        pipelines = {"lowland": partial(ours, write(Path(folder) / "images.parquet", files), load)}
        if find_spec("torchvision") is not None:
            theirs = partial(torchvision_pipeline.stream, files, load.name, load.size, load.batch)
            pipelines["torchvision, Pillow"] = partial(theirs, tensors=False)
            pipelines["torchvision, tensors"] = partial(theirs, tensors=True)
        found: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(rounds):
            for name, stream in pipelines.items():
                found[name].append(rate(stream(), load.batch, seconds))
    return found


def line(load: Load, found: dict[str, list[float]]) -> str:
    """A row of the table; the last cell compares with the better of the others, round by round."""
    cells = [f"{min(rates):,.0f} to {max(rates):,.0f}" for rates in found.values()]
    mine, *others = found.values()
    if others:
        times = [own / max(rates) for own, *rates in zip(mine, *others, strict=True)]
        cells.append(f"{min(times):.2f} to {max(times):.2f}")
    return f"| {' | '.join([str(load), *cells])} |"


def processor() -> str:
    """This machine's, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each pipeline")
    parser.add_argument("--seconds", type=float, default=5.0, help="CPU time of a measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    beside = find_spec("torchvision") is not None
    packages = ("torch", "pillow", *(["torchvision"] if beside else []))
    print(f"{processor()}, one core; {', '.join(f'{name} {version(name)}' for name in packages)}; images/s of CPU time")
    columns = ["load", "lowland", *(["torchvision, Pillow", "torchvision, tensors", "times the better"] * beside)]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for load in LOADS:
        print(line(load, measured(load, arguments.rounds, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
