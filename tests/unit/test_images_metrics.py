"""Measures of predictions, by hand."""

import numpy as np
import pytest
import torch

from lowland.trainers.tasks.image_metrics import Tally
from lowland.trainers.tasks.pictures import confusion_picture, mistakes_picture

CHANCES = torch.tensor(
    [
        [0.70, 0.10, 0.08, 0.05, 0.04, 0.03],
        [0.70, 0.10, 0.08, 0.05, 0.04, 0.03],
        [0.10, 0.50, 0.20, 0.10, 0.06, 0.04],
        [0.02, 0.03, 0.90, 0.02, 0.02, 0.01],
    ]
)
LABELS = torch.tensor([0, 5, 1, 1])
GROUPS = torch.tensor([0, 1, 1, 1])


def tally(where=slice(None)):
    counted = Tally(6, 3)
    counted.add(CHANCES.log()[where], LABELS[where], torch.arange(4)[where], GROUPS[where])
    return counted


def test_measures_by_hand():
    metrics = tally().metrics(list("abcdef"), ["x", "y", "z"])
    assert metrics["eval/loss"] == pytest.approx(-np.log([0.7, 0.03, 0.5, 0.03]).mean())
    assert metrics["eval/accuracy"] == 0.5
    assert metrics["eval/top5_accuracy"] == 0.75
    # Bins of a fifteenth: 0.7 twice, one of them right; 0.5 right; 0.9 wrong.
    assert metrics["eval/calibration_error"] == pytest.approx((abs(1 - 1.4) + abs(1 - 0.5) + abs(0 - 0.9)) / 4)
    assert {k: v for k, v in metrics.items() if "class_accuracy/" in k} == {
        "eval/class_accuracy/a": 1.0,
        "eval/class_accuracy/b": 0.5,
        "eval/class_accuracy/f": 0.0,
    }
    assert (metrics["eval/mean_class_accuracy"], metrics["eval/worst_class_accuracy"]) == (0.5, 0.0)
    assert metrics["eval/group_accuracy/x"] == 1
    assert metrics["eval/group_accuracy/y"] == metrics["eval/worst_group_accuracy"] == pytest.approx(1 / 3)


def test_ranks_add_up():
    whole, parts = tally(), [tally(slice(0, 1)), tally(slice(1, 4))]
    added = Tally(6, 3)
    added.replace([sum(numbers) for numbers in zip(*(part.numbers() for part in parts), strict=True)])
    assert added.metrics(list("abcdef"), list("xyz")) == pytest.approx(whole.metrics(list("abcdef"), list("xyz")))


def test_mistakes_are_kept_by_their_confidence():
    kept = tally().mistakes
    assert [(m.row, m.label, m.predicted) for m in kept] == [(3, 1, 2), (1, 5, 0)]
    many = Tally(2)
    many.add(torch.zeros(40, 2), torch.ones(40, dtype=torch.long), torch.arange(40).flip(0))
    assert [m.row for m in many.mistakes] == list(range(16)), "ties go by row"


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_png_files(channels):
    counted = tally()
    assert confusion_picture(counted.confusion, list("abcdef")).startswith(b"\x89PNG")
    images = torch.zeros(2, channels, 4, 4, dtype=torch.uint8)
    assert mistakes_picture(images, counted.mistakes, list("abcdef"), ["p", "q"]).startswith(b"\x89PNG")
