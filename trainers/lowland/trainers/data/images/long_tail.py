"""A training set whose classes are of very unequal size, made of one whose classes are not."""

import numpy as np
import numpy.typing as npt

from lowland.trainers.data.order import Order

Numbers = npt.NDArray[np.int64]


def tail_counts(counts: Numbers, ratio: float) -> Numbers:
    """How many images of each class are kept: n_max / ratio^(k / (K - 1)) of class k, after Cui et al. (2019).

    Args:
        counts: [K], K >= 2, images of each class.
        ratio: of the first class to the last, at least 1.

    Returns:
        [K]: rounded, at least one image, and no more than there are.
    """
    shares = float(ratio) ** -(np.arange(len(counts)) / (len(counts) - 1))
    wanted = np.rint(counts.max(initial=0) * shares).astype(np.int64)
    kept: Numbers = np.minimum(counts, np.maximum(wanted, 1))
    return kept


def long_tail(labels: Numbers, classes: int, ratio: float, seed: int) -> Numbers:
    """The places [m] of the images that are kept, ascending; random ones of each class.

    Args:
        labels: [n], each in [0, classes).
        classes: K.
        ratio: as of `tail_counts`; 1 keeps all where classes are of equal size.
        seed: which images.
    """
    wanted = tail_counts(np.bincount(labels, minlength=classes), ratio)
    kept = [
        members[Order(len(members), seed).examples(0, count)]
        for label, count in enumerate(wanted.tolist())
        if len(members := np.flatnonzero(labels == label))
    ]
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, dtype=np.int64)
