"""Random numbers of an image: a function of (seed, epoch, image, purpose), whoever draws them and in whatever order."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Uniforms = npt.NDArray[np.float64]
_Words = npt.NDArray[np.uint64]

Purpose = Literal[
    "crop", "flip", "randaugment", "erasing", "mixing", "sampling", "ground", "place", "look", "grain", "transform"
]
_PURPOSES: dict[Purpose, int] = {
    "crop": 1,
    "flip": 2,
    "randaugment": 3,
    "erasing": 4,
    "mixing": 5,
    "sampling": 6,
    "ground": 7,
    "place": 8,
    "look": 9,
    "grain": 10,
    "transform": 11,
}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(
    purpose: Purpose,
    *,
    seed: int,
    epochs: npt.NDArray[np.int64],
    images: npt.NDArray[np.int64],
    count: int,
    view: int = 0,
) -> Uniforms:
    """Numbers in [0, 1), float64 [B, count], independent between purposes, epochs, images and views.

    Args:
        purpose: what they decide.
        seed: of the training.
        epochs: of each image's turn, [B].
        images: their rows, [B].
        count: numbers of each.
        view: which of several versions of the same image, in [0, 256).
    """
    use = (np.uint64(view) << np.uint64(48)) | (np.uint64(_PURPOSES[purpose]) << np.uint64(40))
    state = _mixed(np.full(len(images), np.uint64(seed) ^ use))
    state = _mixed(state + epochs.astype(np.uint64))
    state = _mixed(state + images.astype(np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    words = _mixed(state[:, None] + steps)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(words: _Words) -> _Words:
    """The output function of SplitMix64 (Steele et al., 2014) on the words plus its increment; wraps around."""
    with np.errstate(over="ignore"):
        words = words + _GOLDEN
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))
