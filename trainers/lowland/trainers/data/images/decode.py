"""From encoded bytes to pixels."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]
"""[C, H, W]."""

Reason = Literal[
    "missing image", "corrupt image", "image too small", "missing label", "unknown label", "label out of range"
]
"""What can be wrong with a row."""

_KINDS = {
    "1": "grey",
    "L": "grey",
    "LA": "grey",
    "RGB": "colour",
    "RGBA": "alpha",
    "RGBa": "alpha",
    "P": "palette",
    "PA": "palette",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "LAB",
    "HSV": "HSV",
    "I": "16 bits",
    "F": "float",
}
"""Pillow's modes in words; those that begin with `I;16` are 16 bits too."""

Box = tuple[float, float, float, float]
"""Left, upper, right, lower, in pixels of an image."""


class BadImageError(Exception):
    """An image that cannot be used, and why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Header:
    """What an image says of itself before it is decoded."""

    width: int
    height: int
    kind: str
    """The colour mode, in words."""


def header(data: bytes | Pixels | BinaryIO | None) -> Header:
    """Size and colour mode; reads no pixels, and of a seekable stream no more than they are said in.

    Raises:
        BadImageError: it is no image.
    """
    if isinstance(data, np.ndarray):
        return Header(data.shape[1], data.shape[0], "grey" if data.ndim == 2 else "colour")
    with _opened(data) as image:
        return Header(image.width, image.height, kind_of(image.mode))


def kind_of(mode: str) -> str:
    """A colour mode of Pillow in words."""
    return "16 bits" if mode.startswith("I;16") else _KINDS.get(mode, mode)


def expected_kind(channels: int) -> str:
    """The colour mode that needs no conversion."""
    return "grey" if channels == 1 else "colour"


def decode(
    data: bytes | Pixels | None,
    channels: int,
    *,
    size: int | None = None,
    crop: Callable[[int, int], Box] | None = None,
) -> Pixels:
    """The pixels [channels, H, W] of an image, of whatever colour mode.

    Args:
        data: encoded image, or grey pixels [H, W], or coloured ones [H, W, 3].
        channels: 1 for grey, 3 for RGB.
        size: side of the square to resize to (bilinear, over all pixels that a new one covers); None keeps the size.
        crop: gives the part of the image that is taken, from its width and height; None takes all.

    16 bits become 8 by leaving out the lower ones, which Pillow's own conversion would clip instead.

    Raises:
        BadImageError: it cannot be decoded.
    """
    try:
        with _opened(data) as image:
            width, height = image.size
            box = crop(width, height) if crop is not None else (0.0, 0.0, float(width), float(height))
            if size is not None:
                _draft(image, size, box)
                scale = image.width / width, image.height / height
                box = (box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1])
            whole = _converted(image, channels)
            if size is not None and not (box == (0, 0, size, size) and whole.size == (size, size)):
                whole = whole.resize((size, size), Image.Resampling.BILINEAR, box=box)
            pixels = np.asarray(whole, dtype=np.uint8)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise BadImageError("corrupt image", str(error) or type(error).__name__) from None
    # A copy, since Pillow's memory may not be written.
    return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")


def _opened(data: bytes | Pixels | BinaryIO | None) -> Image.Image:
    if data is None:
        raise BadImageError("missing image", "the row has no image, or its file is gone")
    if isinstance(data, np.ndarray):
        return Image.fromarray(data)
    try:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except Exception as error:
        text = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadImageError("corrupt image", text or type(error).__name__) from None


def _draft(image: Image.Image, size: int, box: Box) -> None:
    """Lets a JPEG be decoded at a half, a quarter or an eighth, as long as the part taken keeps `size` pixels."""
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        shorter = min(box[2] - box[0], box[3] - box[1])
        factor = size / max(shorter, 1.0)
        image.draft(None, (max(1, int(image.width * factor)), max(1, int(image.height * factor))))


def _converted(image: Image.Image, channels: int) -> Image.Image:
    image.load()
    if kind_of(image.mode) == "16 bits":
        values = np.asarray(image)
        image = Image.fromarray((values.astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise BadImageError("corrupt image", "floating-point pixels have no range that is known; save it with 8 bits")
    return image.convert("L" if channels == 1 else "RGB")
