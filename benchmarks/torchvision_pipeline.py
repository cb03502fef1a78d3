"""The loads of `image_pipeline.py` by torchvision's transforms and torch's DataLoader, with one worker process."""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate

CLASSES = 10
_ENDLESS = 10**7
"""Images that a stream has, more than any measurement takes."""


def transforms() -> Any:
    """`torchvision.transforms.v2`.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except RuntimeError:
        # torchvision's compiled operators do not load beside a torch of another build, and its import then stops
        # where it describes two that find boxes.  No transform of images calls them, so it is enough that they have
        # a signature.
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        from torchvision.transforms import v2
    return v2


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Images with labels.

    Args:
        held: what is in memory of each.
        opened: makes of it what `transform` takes.
        transform: gives uint8 [3, H, W].
    """

    def __init__(
        self, held: Sequence[Any], opened: Callable[[Any], Any], transform: Callable[[Any], torch.Tensor]
    ) -> None:
        self._held, self._opened, self._transform = held, opened, transform

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(self._opened(self._held[index])), index % CLASSES


def pillow(data: bytes) -> Image.Image:
    """As torchvision's folders of images are read."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def steps(augmentation: str, size: int) -> tuple[list[Any], list[Any], Any]:
    """A load's transforms: of the image, of its bytes as a tensor, and of a batch (None if there is none)."""
    v2 = transforms()
    flip = v2.RandomHorizontalFlip(0.5)
    if augmentation == "resized crop, flip":
        return [v2.RandomResizedCrop(size), flip], [], None
    crop = v2.RandomCrop(size, padding=4)
    if augmentation == "crop, flip, RandAugment":
        return [crop, flip, v2.RandAugment(2, 9)], [], None
    if augmentation == "crop, flip, erasing, CutMix":
        return [crop, flip], [v2.RandomErasing(0.25)], v2.CutMix(num_classes=CLASSES)
    return [crop, flip], [], None


def stream(files: list[bytes], augmentation: str, size: int, batch: int, *, tensors: bool) -> Iterator[Any]:
    """Batches from a DataLoader, shuffled.

    Args:
        files: encoded images; those of the network's size are decoded beforehand.
        augmentation: one of the loads.
        size: side of what the network sees.
        batch: images of a batch.
        tensors: whether transforms act on tensors, or on Pillow's images.
    """
    of_image, of_tensor, of_batch = steps(augmentation, size)
    to_tensor = transforms().PILToTensor()
    chain = transforms().Compose([*of_image, *of_tensor] if tensors else [*of_image, to_tensor, *of_tensor])
    opened: Callable[[Any], Any] = (lambda data: to_tensor(pillow(data))) if tensors else pillow
    held: Sequence[Any] = files
    if pillow(files[0]).size == (size, size):
        arrays = np.stack([np.asarray(pillow(data)) for data in files])
        held = torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous() if tensors else arrays  # type: ignore
        opened = (lambda image: image) if tensors else Image.fromarray
    images = Images(held, opened, chain)
    loader = DataLoader(
        images,
        batch,
        sampler=RandomSampler(images, num_samples=_ENDLESS),
        num_workers=1,
        collate_fn=default_collate if of_batch is None else partial(_mixed, of_batch),
    )
    return iter(loader)


def _mixed(mix: Callable[..., Any], examples: list[tuple[torch.Tensor, int]]) -> Any:
    return mix(*default_collate(examples))
