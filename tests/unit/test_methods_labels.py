"""Label noise: how much, of what kind, and the same at every call."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.trainers.methods.label_noise import (
    CIFAR10_PAIRS,
    COUNTS,
    asymmetric_noise,
    next_class,
    noise_report,
    symmetric_noise,
)


def labels(count, classes):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(9))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(0, 60), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_symmetric_noise_changes_exactly_its_share(classes, count, rate, seed):
    clean = labels(count, classes)
    noisy = symmetric_noise(clean, classes, rate, seed)
    assert int((noisy != clean).sum()) == round(rate * count)
    assert bool(((noisy >= 0) & (noisy < classes)).all())
    assert torch.equal(noisy, symmetric_noise(clean, classes, rate, seed))
    assert torch.equal(clean, labels(count, classes)), "the labels themselves stay"


def test_symmetric_noise_treats_other_classes_alike():
    clean = torch.full((30_000,), 2)
    counts = torch.bincount(symmetric_noise(clean, 4, 1.0, seed=1), minlength=4)
    assert counts[2] == 0
    assert bool(((counts[[0, 1, 3]] - 10_000).abs() < 400).all())
    own_too = symmetric_noise(clean, 4, 1.0, seed=1, own_too=True)
    assert abs(float((own_too == clean).double().mean()) - 0.25) < 0.01


def test_another_seed_is_other_noise():
    clean = labels(200, 5)
    assert not torch.equal(symmetric_noise(clean, 5, 0.5, 1), symmetric_noise(clean, 5, 0.5, 2))


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_asymmetric_noise_takes_its_share_of_each_class_to_its_target(rate, seed):
    clean = labels(300, 10)
    noisy = asymmetric_noise(clean, CIFAR10_PAIRS, rate, seed)
    for label, target in enumerate(CIFAR10_PAIRS):
        own = clean == label
        assert set(noisy[own].tolist()) <= {label, target}
        moved = 0 if label == target else round(rate * int(own.sum()))
        assert int((noisy[own] != label).sum()) == moved


def test_next_classes():
    assert next_class(3) == (1, 2, 0)
    assert torch.equal(asymmetric_noise(torch.tensor([0, 1, 2]), next_class(3), 1.0, 0), torch.tensor([1, 2, 0]))


def test_the_report_tells_memorised_from_corrected():
    logits = torch.eye(3)[[0, 1, 2, 2, 0]]
    noisy, clean = torch.tensor([0, 1, 1, 2, 1]), torch.tensor([0, 0, 2, 2, 2])
    expected = {"changed": 3, "unchanged": 2, "memorised": 1, "corrected": 1, "unchanged_correct": 2}
    assert dict(zip(COUNTS, noise_report(logits, noisy, clean).tolist(), strict=True)) == expected
