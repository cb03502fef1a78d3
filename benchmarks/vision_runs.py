"""Trainings of image classifiers in processes that train one after the other."""

import gc
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
import vision_plain
from vision_arms import ARMS, recipe
from vision_plain import Outcome

from lowland.trainers.fit import Places, fit
from lowland.trainers.monitor import SilentMonitor
from lowland.trainers.recipe import ImageClassificationConfig
from lowland.trainers.world import World


class Worker:
    """What a process keeps between trainings."""

    device: torch.device
    images: Path
    """Folder of Parquet files, and arrays.npz made of them."""


def start_worker(devices: "Queue[str]", images: Path, threads: int) -> None:
    """Makes a process ready; each takes a device of its own."""
    Worker.device, Worker.images = torch.device(devices.get()), images
    torch.set_num_threads(threads)
    if Worker.device.type == "cuda":
        torch.cuda.set_device(Worker.device)


def train(name: str, seed: int, epochs: float | None, changes: Mapping[str, Any]) -> Outcome | str:
    """Trains an arm; what went wrong is a text."""
    begun = time.monotonic()
    try:
        config = recipe(ARMS[name], seed, Worker.images, epochs, changes)
        if ARMS[name].by_hand:
            found = vision_plain.train(config, Worker.images / "arrays.npz", Worker.device)
        else:
            found = with_lowland(config, Worker.device)
        return replace(found, seconds=time.monotonic() - begun)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        gc.collect()
        if Worker.device.type == "cuda":
            torch.cuda.empty_cache()  # others train on this GPU


def with_lowland(config: ImageClassificationConfig, device: torch.device) -> Outcome:
    """Trains through `lowland.trainers.fit` in this process."""
    recorder = Recorder()
    folder = tempfile.mkdtemp(prefix="vision-")
    try:
        result = fit(
            config,
            world=World.current(device),
            monitor=recorder,
            places=Places(folder, None),
            card=lambda metrics: "",
            metadata={},
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    kept = {name: value for name, value in result.metrics.items() if name.count("/") == 1 or "methods/" in name}
    curve, losses = recorder.series["eval/accuracy"], recorder.series["train/loss"]
    epochs = result.metrics["train/epoch"]
    return Outcome(result.metrics["eval/accuracy"], curve, losses, epochs, result.seconds, kept)


class Recorder(SilentMonitor):
    """Keeps the metrics, by name: steps and values."""

    def __init__(self) -> None:
        self.series: dict[str, list[tuple[int, float]]] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps them."""
        for name, value in values.items():
            self.series.setdefault(name, []).append((step, value))
