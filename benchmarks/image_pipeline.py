"""Images per second that one core reads and augments, beside torchvision where it can be imported.

    python benchmarks/image_pipeline.py

Two loads: small images in memory, as CIFAR-10's, and JPEG files that are decoded, cropped and resized to 224 x 224, as
ImageNet's.  Both are made here: smooth random images, which compress about as photographs do.  Times are CPU times of
this process with one thread, so that other load on the machine counts as little as it can.
"""

import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from lowland.trainers.data.images.batches import TrainImages
from lowland.trainers.data.images.data import open_images
from lowland.trainers.recipe import AugmentationConfig, ImageDataConfig

SMALL = {
    "crop, flip": {"padding": 4, "flip": 0.5},
    "crop, flip, RandAugment": {"padding": 4, "flip": 0.5, "randaugment": {}},
    "crop, flip, erasing, MixUp, CutMix": {"padding": 4, "flip": 0.5, "erasing": {}, "mixup": 0.8, "cutmix": 1.0},
}
LARGE = {"resized crop, flip": {"resized_crop": {}, "flip": 0.5}}
SHAPE = (375, 500)
"""Height and width of the JPEG files: ImageNet's commonest."""


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


def rate(batch: Callable[[int], Any], size: int, seconds: float = 3.0) -> float:
    """Images per second of CPU time."""
    batch(0)
    start, turns = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        turns += 1
        batch(turns)
    return turns * size / spent


def ours(path: Path, size: int, augmentation: dict[str, Any], batch_size: int, cache: str) -> float:
    """This pipeline."""
    fields = {"path": str(path), "size": size, "cache": cache, "threads": 1, "mean": [0.5] * 3, "std": [0.25] * 3}
    config = AugmentationConfig.model_validate(augmentation)
    images = TrainImages(
        open_images(ImageDataConfig.model_validate(fields)).train,
        config,
        colour=torch.tensor([128] * 3, dtype=torch.uint8),
        seed=0,
        micro_batch=batch_size,
    )
    return rate(lambda turn: images.batch(turn * batch_size, batch_size), batch_size)


def theirs(files: list[bytes], size: int, batch_size: int) -> float | None:
    """Pillow and torchvision's transforms, an image at a time, as in a DataLoader; None without torchvision."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError):
        return None
    transform = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])

    def batch(turn: int) -> torch.Tensor:
        chosen = [files[(turn * batch_size + i) % len(files)] for i in range(batch_size)]
        return torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in chosen])

    return rate(batch, batch_size)


def rows() -> Iterator[tuple[str, str, float | None]]:
    """What was measured: load, pipeline, images per second."""
    with TemporaryDirectory() as folder:
        small = write(Path(folder) / "small.parquet", [encoded(smooth(i, 32, 32)) for i in range(2000)])
        for name, augmentation in SMALL.items():
            yield f"32 x 32 in memory: {name}", "lowland", ours(small, 32, augmentation, 128, "always")
        files = [encoded(smooth(i, *SHAPE)) for i in range(128)]
        print(
            f"JPEG files of {SHAPE[1]} x {SHAPE[0]}, {np.mean([len(data) for data in files]) / 1000:.0f} kB on average"
        )
        large = write(Path(folder) / "large.parquet", files)
        for name, augmentation in LARGE.items():
            measured = partial(ours, large, 224, augmentation, 32, "never")
            yield f"JPEG to 224 x 224: {name}", "lowland", measured()
            yield f"JPEG to 224 x 224: {name}", "Pillow, torchvision", theirs(files, 224, 32)


def processor() -> str:
    """This machine's, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


def main() -> None:
    """Prints a table."""
    torch.set_num_threads(1)
    print(f"{processor()}; torch {torch.__version__}, Pillow {Image.__version__}; one thread")
    for load, pipeline, images in rows():
        measured = "torchvision cannot be imported here" if images is None else f"{images:,.0f} images/s"
        print(f"{load:58} {pipeline:20} {measured}", flush=True)


if __name__ == "__main__":
    main()
