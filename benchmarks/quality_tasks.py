"""What optimizers are compared on: data that stays on the device, batches, losses and test quality."""

import io
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from quality_models import ResNet, Transformer
from torch import Tensor, nn
from torch.nn import functional

LENGTH = 128
"""Bytes that the language model sees."""
HELD_OUT = 0.1
"""Share of the training images, and of the text, that is not trained on."""


@dataclass(frozen=True)
class Task:
    """A model, its data, and the settings that all methods share."""

    name: str
    data: str
    """`text` or `images`."""
    steps: int
    batch: int
    width: int
    layers: int
    centres: dict[str, float]
    """Where the learning rates of AdamW and SGD are centred."""
    decays: dict[str, float]
    """Weight decay of AdamW (decoupled) and SGD (in the gradient)."""
    larger: bool
    """Whether a larger quality is better."""
    quality: str
    evaluated: int = 10**9
    """Rows of each part that are evaluated, at most."""


TASKS = {
    task.name: task
    for task in (
        Task(
            "lm", "text", 600, 64, 256, 4, {"adamw": 2e-3, "sgd": 0.4}, {"adamw": 0.1, "sgd": 1e-4}, False, "nats/byte"
        ),
        Task(
            "resnet", "images", 1000, 256, 64, 3, {"adamw": 4e-3, "sgd": 0.2}, {"adamw": 0.05, "sgd": 5e-4}, True, "%"
        ),
        Task("vit", "images", 1000, 256, 192, 4, {"adamw": 1e-3, "sgd": 0.2}, {"adamw": 0.05, "sgd": 1e-4}, True, "%"),
    )
}


def tiny(task: Task) -> Task:
    """The task so small that a CPU goes through it in a second."""
    return replace(task, steps=4, batch=8, width=16, layers=min(task.layers, 2), evaluated=16)


def prepare(source: Path | None, data: str, target: Path) -> bool:
    """Writes a data set as arrays into a .npz file.

    Args:
        source: a text file; a folder with train.parquet and test.parquet (columns image with JPEG or PNG bytes, and
            label); or None for what any machine has: the sources of Python's standard library, scikit-learn's digits.
        data: `text` or `images`.
        target: the file to write.

    Returns:
        Whether there was something to write: no if scikit-learn is missing.
    """
    if data == "text":
        np.savez(target, text=np.frombuffer(source.read_bytes() if source else _standard_library(), dtype=np.uint8))
        return True
    arrays = _digits() if source is None else _parquet(source)
    if arrays is not None:
        np.savez(target, **arrays)  # type: ignore[arg-type]
    return arrays is not None


def _standard_library(limit: int = 4_000_000) -> bytes:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))[:limit]


def _digits() -> dict[str, npt.NDArray[Any]] | None:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return None
    digits = load_digits()
    images = (digits.images[..., None] * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels, cut = images[order], digits.target[order], len(images) * 3 // 4
    return {"train": images[:cut], "train_labels": labels[:cut], "test": images[cut:], "test_labels": labels[cut:]}


def _parquet(folder: Path) -> dict[str, npt.NDArray[Any]]:
    import pyarrow.parquet as pq
    from PIL import Image

    arrays: dict[str, npt.NDArray[Any]] = {}
    for split in ("train", "test"):
        table = pq.read_table(folder / f"{split}.parquet", columns=["image", "label"])
        rows = table.column("image").to_pylist()
        arrays[split] = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows])
        arrays[f"{split}_labels"] = table.column("label").to_numpy()
    return arrays


class Text:
    """Next-byte prediction; quality is the mean cross-entropy in nats per byte."""

    def __init__(self, path: Path, task: Task, device: torch.device) -> None:
        text = torch.from_numpy(np.load(path)["text"]).to(device)
        cut = int(len(text) * (1 - HELD_OUT))
        middle = (cut + len(text)) // 2
        self._train, self._task, self._device = text[:cut], task, device
        self._parts = {"tuning": _windows(text[cut:middle]), "test": _windows(text[middle:])}

    def model(self) -> nn.Module:
        """A decoder-only transformer over bytes."""
        embed = nn.Embedding(256, self._task.width)
        return Transformer(embed, self._task.width, self._task.layers, LENGTH, 256, causal=True)

    def loss(self, model: nn.Module, generator: torch.Generator) -> Callable[[], Tensor]:
        """The loss of the next batch, to be taken as often as wished."""
        starts = torch.randint(
            len(self._train) - LENGTH, (self._task.batch, 1), generator=generator, device=self._device
        )
        rows = self._train[starts + torch.arange(LENGTH + 1, device=self._device)].long()
        return lambda: _cross_entropy(model(rows[:, :-1]), rows[:, 1:])

    def quality(self, model: nn.Module, part: str) -> float:
        """Of the `tuning` or the `test` part."""
        rows = self._parts[part][: self._task.evaluated].long()
        losses = [_cross_entropy(model(some[:, :-1]), some[:, 1:]) * len(some) for some in rows.split(256)]
        return float(sum(losses, torch.zeros((), device=rows.device))) / len(rows)


class Images:
    """Image classification with random crops, and flips of colour images; quality is the accuracy in percent."""

    def __init__(self, path: Path, task: Task, device: torch.device) -> None:
        arrays = np.load(path)
        read = {name: torch.from_numpy(arrays[name]).to(device) for name in arrays.files}
        cut = int(len(read["train"]) * (1 - HELD_OUT))
        labels = read["train_labels"]
        self._task, self._device = task, device
        self._parts = {
            "tuning": (read["train"][cut:], labels[cut:].long()),
            "test": (read["test"], read["test_labels"].long()),
        }
        self._labels, size = labels[:cut].long(), read["train"].shape[1]
        self._size, self._channels, self._shift = size, read["train"].shape[3], size // 8
        margin = (0, 0, *(self._shift,) * 4)
        self._padded = functional.pad(read["train"][:cut], margin)
        pixels = read["train"][:cut].float()
        self._mean, self._deviation = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))

    def model(self) -> nn.Module:
        """A residual network, or a vision transformer with 64 patches."""
        if self._task.name == "resnet":
            return ResNet(self._channels, self._task.width, self._task.layers)
        patch = self._size // 8
        embed = nn.Sequential(nn.Conv2d(self._channels, self._task.width, patch, patch), nn.Flatten(2))
        return Transformer(embed, self._task.width, self._task.layers, 64, 10, causal=False)

    def loss(self, model: nn.Module, generator: torch.Generator) -> Callable[[], Tensor]:
        """The loss of the next batch, to be taken as often as wished."""
        count, reach = self._task.batch, torch.arange(self._size, device=self._device)
        rows = torch.randint(len(self._labels), (count, 1, 1), generator=generator, device=self._device)
        shifts = torch.randint(2 * self._shift + 1, (2, count, 1), generator=generator, device=self._device)
        flips = torch.randint(2, (count, 1), generator=generator, device=self._device).bool()
        across = torch.where(flips, reach.flip(0), reach) if self._channels == 3 else reach.expand(count, -1)
        down, across = shifts[0] + reach, shifts[1] + across
        images = self._normal(self._padded[rows, down[:, :, None], across[:, None, :]])
        labels = self._labels[rows.flatten()]
        return lambda: functional.cross_entropy(model(images).float(), labels)

    def quality(self, model: nn.Module, part: str) -> float:
        """Of the `tuning` or the `test` part."""
        images, labels = (tensor[: self._task.evaluated] for tensor in self._parts[part])
        pairs = zip(images.split(1000), labels.split(1000), strict=True)
        right = [(model(self._normal(some)).argmax(1) == truth).sum() for some, truth in pairs]
        return 100 * float(sum(right, torch.zeros((), device=images.device))) / len(labels)

    def _normal(self, images: Tensor) -> Tensor:
        """From uint8 [B, H, W, C] to float [B, C, H, W], channels last."""
        return ((images.float() - self._mean) / self._deviation).permute(0, 3, 1, 2)


def problem(task: Task, path: Path, device: torch.device) -> Text | Images:
    """The task's data, on the device."""
    return Text(path, task, device) if task.data == "text" else Images(path, task, device)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 on GPUs, float32 on CPUs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _windows(text: Tensor) -> Tensor:
    """All windows of LENGTH + 1 bytes, each starting with the last byte of the one before."""
    return text.unfold(0, LENGTH + 1, LENGTH)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
