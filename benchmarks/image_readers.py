"""What batches of images cost by reader: threads, processes, Ray Data (`data.reader: ray`), and plain Ray actors.

    python benchmarks/image_readers.py

Each reader makes steps of JPEG files of 500 x 375 to 224 x 224 (random parts, mirrored), which nothing trains on; the
first ones do not count, and the start is the time to the first. CPU time is that of this process and all of Ray's below
it: on a machine with other load it says more than images per second do. Processes are what `augmentation.transform`
brings. The plain actors are for comparison.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from image_pipeline import SHAPE, encoded, processor, smooth, write
from PIL import Image

from lowland.platform.cluster import connect
from lowland.trainers.data.images.batches import TrainImages
from lowland.trainers.data.images.data import open_images
from lowland.trainers.data.images.elsewhere import Apart, Arrays, Elsewhere, ImagesApart
from lowland.trainers.data.images.processes import Processes
from lowland.trainers.recipe import AugmentationConfig, ImageDataConfig

BATCH, AHEAD, PROCESSES = 32, 4, 2
SKIPPED, STEPS = 20, 200


def plain_actors(build: Callable[[int], Arrays], ahead: int) -> Generator[Arrays]:
    """An `Elsewhere` of actors that are given one number after the other."""
    import ray

    class Maker:
        def make(self, index: int) -> Arrays:
            return build(index)

    actors = [ray.remote(num_cpus=1)(Maker).remote() for _ in range(PROCESSES)]
    turns = count()
    under_way: deque[Any] = deque()
    try:
        while True:
            while len(under_way) < max(ahead, 2 * PROCESSES):
                index = next(turns)
                under_way.append(actors[index % PROCESSES].make.remote(index))
            yield ray.get(under_way.popleft())
    finally:
        for actor in actors:
            ray.kill(actor)


def ray_data(build: Callable[[int], Arrays], ahead: int) -> Generator[Arrays]:
    """The platform's."""
    from lowland.platform.ray_reader import RayReader

    return RayReader(PROCESSES)(build, ahead)


class Meter(threading.Thread):
    """CPU seconds of this process and of all below it, looked at while they live: Ray's raylet keeps no account."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._seen: dict[int, float] = {}
        self._ended = threading.Event()
        self._first = self._total()

    def run(self) -> None:
        """Looks every now and then."""
        while not self._ended.wait(0.1):
            self._total()

    def stop(self) -> float:
        """CPU seconds since it was made."""
        self._ended.set()
        self.join()
        return self._total() - self._first

    def _total(self) -> float:
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                self._seen[process.pid] = sum(process.cpu_times()[:2])
        return sum(self._seen.values())


def report(name: str, config: ImageDataConfig, elsewhere: Elsewhere | None) -> None:
    """Prints a line."""
    from lowland.platform import ray_reader

    ray_reader.STEPS = SKIPPED + STEPS  # its pipeline ends with the steps, so that none is made in vain
    images = open_images(config, larger_originals=True).train
    augmentation = AugmentationConfig.model_validate({"resized_crop": {}, "flip": 0.5})
    apart = Apart(elsewhere, ImagesApart(images, config)) if elsewhere is not None else None
    colour = torch.tensor([128] * 3, dtype=torch.uint8)
    began = time.monotonic()
    stream = iter(
        TrainImages(images, augmentation, colour=colour, seed=0, micro_batch=BATCH, prefetch=AHEAD, apart=apart)
    )
    next(stream)
    start = time.monotonic() - began
    deque(islice(stream, SKIPPED - 1), maxlen=0)
    meter, began = Meter(), time.monotonic()
    meter.start()
    deque(islice(stream, STEPS), maxlen=0)
    wall, cpu = time.monotonic() - began, meter.stop()
    stream.close()
    print(f"{name:24} {STEPS * BATCH / wall:8,.0f} {STEPS * BATCH / cpu:18,.0f} {start:8.1f}", flush=True)


def main() -> None:
    """Prints a table."""
    import ray

    torch.set_num_threads(1)
    print(f"{processor()}; torch {torch.__version__}, Pillow {Image.__version__}, Ray {ray.__version__}")
    print(f"batches of {BATCH}; {PROCESSES} threads or processes on {psutil.cpu_count()} cores")
    print(f"{'reader':24} {'images/s':>8} {'images/CPU second':>18} {'start, s':>8}")
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / "large.parquet", [encoded(smooth(i, *SHAPE)) for i in range(128)])
        fields = {"path": str(path), "size": 224, "cache": "never", "mean": [0.5] * 3, "std": [0.25] * 3}
        config = ImageDataConfig.model_validate({**fields, "threads": 1})
        report("local, 2 threads", config.model_copy(update={"threads": PROCESSES}), None)
        report("local, 2 processes", config, Processes(PROCESSES))
        with connect("local", cpus=PROCESSES + 1, gpus=0):
            report("ray (Ray Data)", config, ray_data)
            report("plain Ray actors", config, plain_actors)


if __name__ == "__main__":
    main()
