"""Augmentation by hand-computed cases, by Pillow's own operations, and by what it may depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from support.vision import EVERYTHING, noise

from lowland.trainers.data.images import augment
from lowland.trainers.data.images.batches import HeldOutImages, TrainImages
from lowland.trainers.data.images.chance import uniforms
from lowland.trainers.data.images.data import open_images
from lowland.trainers.data.images.mixing import mixture, paste
from lowland.trainers.data.images.randaugment import OPERATIONS, apply, randaugment
from lowland.trainers.recipe import AugmentationConfig, ImageDataConfig

SMALL = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
NO_FLIP, FLIP = np.array([False]), np.array([True])


@pytest.fixture(scope="module")
def digits():
    return open_images(ImageDataConfig(channels=1, threads=1))


@pytest.mark.parametrize(
    ("shift", "flip", "mode", "expected"),
    [
        ((0.5, 0.5), NO_FLIP, "zeros", [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        ((0.5, 0.5), FLIP, "zeros", [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        ((0.0, 0.0), NO_FLIP, "zeros", [[0, 0, 0], [0, 1, 2], [0, 4, 5]]),
        ((0.99, 0.0), NO_FLIP, "zeros", [[0, 4, 5], [0, 7, 8], [0, 0, 0]]),
        ((0.0, 0.99), FLIP, "zeros", [[0, 0, 0], [0, 3, 2], [0, 6, 5]]),
        ((0.0, 0.0), NO_FLIP, "reflect", [[5, 4, 5], [2, 1, 2], [5, 4, 5]]),
    ],
)
def test_padded_crops(shift, flip, mode, expected):
    found = augment.padded_crop(SMALL, np.array([shift]), flip, padding=1, mode=mode)
    assert found[0, 0].tolist() == expected


def test_every_shift_is_drawn_equally_often():
    shifts = (np.arange(300)[:, None] / 300).repeat(2, 1)
    images = SMALL.expand(300, -1, -1, -1)
    found = augment.padded_crop(images, shifts, np.zeros(300, bool), padding=1, mode="zeros")
    counts = [int((found[:, 0] == SMALL[0, 0].roll((s, s), (0, 1)) * m).all((1, 2)).sum()) for s, m in _moved()]
    assert counts == [100, 100, 100]


def _moved():
    for shift in (1, 0, -1):
        mask = torch.ones(3, 3, dtype=torch.uint8)
        if shift:
            mask[0 if shift == 1 else -1] = 0
            mask[:, 0 if shift == 1 else -1] = 0
        yield shift, mask


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=10, max_size=10), st.integers(1, 50), st.integers(1, 50))
def test_parts_of_images_lie_within_them_and_keep_area_and_shape(numbers, width, height):
    left, upper, right, lower = augment.part_of_image(
        np.array(numbers), width, height, area=(0.25, 0.5), ratio=(0.5, 2.0)
    )
    assert -1e-9 <= left <= right <= width + 1e-9
    assert -1e-9 <= upper <= lower <= height + 1e-9
    assert 0.5 - 1e-6 <= (right - left) / (lower - upper) <= 2 + 1e-6
    if 0.5 <= width / height <= 2:
        assert (right - left) * (lower - upper) >= 0.25 * width * height * (1 - 1e-6)


def test_a_part_that_is_the_whole_changes_nothing_and_a_half_is_enlarged():
    images = torch.from_numpy(noise(0, 2, 3, 8, 8))
    whole = np.array([[0.0, 0, 8, 8]] * 2)
    assert torch.equal(augment.resized_parts(images, whole), images)
    steps = torch.arange(8, dtype=torch.uint8).mul(10).expand(1, 1, 8, 8)
    half = augment.resized_parts(steps, np.array([[2.0, 2, 6, 6]]))
    assert half[0, 0, 0].tolist() == [18, 22, 28, 32, 38, 42, 48, 52]


def test_erasing_fills_a_rectangle_of_the_drawn_images():
    images = torch.full((3, 2, 10, 10), 9, dtype=torch.uint8)
    numbers = np.full((3, augment.ERASING_NUMBERS), 0.5)
    numbers[:, 0] = (0.1, 0.3, 0.2)
    found = augment.erase(
        images, numbers, probability=0.25, area=(0.16, 0.16), ratio=(1, 1), colour=torch.tensor([1, 2])
    )
    changed = (found != 9).flatten(1).sum(1).tolist()
    assert changed == [32, 0, 32]
    assert found[0, :, 3:7, 3:7].unique().tolist() == [1, 2]
    assert (found[0, 0, 3:7, 3:7] == 1).all()


PILLOW = {
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "posterize": lambda image, level: ImageOps.posterize(image, int(level)),
    "solarize": lambda image, level: ImageOps.solarize(image, int(np.ceil(level))),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(1 + level),
    "colour": lambda image, level: ImageEnhance.Color(image).enhance(1 + level),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(1 + level),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(1 + level),
    "rotate": lambda image, level: image.rotate(level, Image.Resampling.NEAREST),
    "translate_x": lambda image, level: image.transform(image.size, 0, (1, 0, -int(level), 0, 1, 0)),
    "translate_y": lambda image, level: image.transform(image.size, 0, (1, 0, 0, 0, 1, -int(level))),
}
EXACT = {"autocontrast": 1, "equalize": 0, "posterize": 0, "solarize": 0, "translate_x": 0, "translate_y": 0}
"""Greatest difference: Pillow rounds and truncates in other places, by one or two."""


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("magnitude", [4, 9, 30])
def test_randaugments_operations_are_pillows(name, sign, magnitude):
    smooth = (np.add.outer(np.arange(24), np.arange(24))[..., None] * [2, 3, 4] + noise(1, 24, 24, 3) // 8).clip(0, 230)
    pixels = smooth.astype(np.uint8)
    strength, signed, _ = OPERATIONS[name]
    level = strength(magnitude / 30, 24, 24) * (sign if signed else 1)
    expected = np.asarray(PILLOW[name](Image.fromarray(pixels), level)).astype(int)
    found = apply(name, torch.from_numpy(pixels).permute(2, 0, 1)[None], magnitude, np.array([sign]))
    difference = np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - expected)
    if name == "rotate":
        assert (difference > 0).mean() < 0.02, "places at the border between two pixels"
    else:
        assert difference.max() <= EXACT.get(name, 2)


def test_shears_move_rows_by_their_number():
    images = torch.eye(5, dtype=torch.uint8)[None, None] * 7
    strength = 0.3
    found = apply("shear_x", images, 30, np.array([1.0]))[0, 0]
    for row in range(5):
        place = row - strength * row
        assert found[row].argmax() == round(place), row
    assert torch.equal(apply("shear_y", images, 30, np.array([1.0]))[0, 0], found.T)


def test_randaugment_draws_each_operation_equally_often_and_does_not_change_its_input():
    images = torch.from_numpy(noise(3, 4, 3, 8, 8))
    before = images.clone()
    numbers = np.array([[i / 14 + 0.01, 0.3] for i in (0, 6, 10, 13)])
    found = randaugment(images, numbers, operations=1, magnitude=9)
    assert torch.equal(images, before)
    for index, name in enumerate(("identity", "brightness", "posterize", "equalize")):
        assert torch.equal(found[index : index + 1], apply(name, images[index : index + 1], 9, np.array([1.0])))


def test_mixtures_by_hand():
    # Beta(1, 1) is uniform, so that the second number is lambda itself.
    numbers = np.array([[0.9, 0.25, 0.5, 0.5], [0.9, 0.75, 0.0, 0.0]])
    mixup = mixture(numbers, mixup=1.0, cutmix=0.0, height=8, width=8)
    assert (mixup.pixels.tolist(), mixup.labels.tolist()) == ([0.25, 0.75], [0.25, 0.75])
    assert not mixup.boxes.any()
    cutmix = mixture(numbers, mixup=0.0, cutmix=1.0, height=8, width=8)
    # sqrt(0.75) of 8 around the middle: 0.54 to 7.46; sqrt(0.25) of 8 around a corner: a quarter of it is inside.
    assert cutmix.boxes.tolist() == [[1, 1, 7, 7], [0, 0, 2, 2]]
    assert cutmix.labels.tolist() == [1 - 36 / 64, 1 - 4 / 64]
    assert cutmix.pixels.tolist() == [1, 1]
    images, others = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.ones(2, 1, 8, 8, dtype=torch.uint8)
    assert paste(images, others, cutmix.boxes).flatten(1).sum(1).tolist() == [36, 4]
    both = mixture(np.array([[0.4, 0.5, 0.5, 0.5], [0.6, 0.5, 0.5, 0.5]]), mixup=1.0, cutmix=1.0, height=8, width=8)
    assert [bool(box.any()) for box in both.boxes] == [True, False]


def test_numbers_are_uniform_and_depend_on_seed_epoch_image_and_purpose():
    images = np.arange(4000)
    draw = {"seed": 3, "epochs": np.zeros_like(images), "images": images, "count": 3}
    numbers = uniforms("crop", **draw)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(np.sort(numbers[:, 0]) - np.linspace(0, 1, 4000)).max() < 0.03
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.05
    assert np.array_equal(uniforms("crop", **{**draw, "count": 2}), numbers[:, :2])
    others = [{"seed": 4}, {"epochs": np.ones_like(images)}, {"images": images + 1}]
    for other in (uniforms("flip", **draw), *(uniforms("crop", **{**draw, **change}) for change in others)):
        assert abs(np.corrcoef(other[:, 0], numbers[:, 0])[0, 1]) < 0.05


AUGMENTATIONS = {
    "everything": EVERYTHING,
    "parts": {"resized_crop": {}, "flip": 0.5},
    "cutmix": {"cutmix": 1.0},
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("first", [0, 7, 1610])
def test_examples_are_the_same_however_the_stream_is_cut(digits, name, first):
    config = AugmentationConfig.model_validate(AUGMENTATIONS[name])

    def stream(**cut):
        return TrainImages(digits.train, config, colour=torch.tensor([77]), seed=5, **{"micro_batch": 12, **cut})

    whole = vars(stream().batch(first, 12))
    for size in (1, 3, 4):
        parts = [vars(stream().batch(first + start, size)) for start in range(0, 12, size)]
        for field, value in whole.items():
            joined = None if value is None else torch.cat([part[field] for part in parts])
            assert value is None if joined is None else torch.equal(value, joined), field


def test_steps_are_the_same_at_every_world_size_and_go_on_from_any_example(digits):
    config = AugmentationConfig.model_validate(EVERYTHING)

    def steps(count, **cut):
        batches = TrainImages(digits.train, config, colour=torch.tensor([77]), seed=5, prefetch=1, **cut)
        iterator = iter(batches)
        found = [next(iterator) for _ in range(count)]
        iterator.close()
        return found

    alone = steps(3, micro_batch=2, accumulation=4)
    ranks = [steps(3, micro_batch=2, accumulation=2, rank=rank, world_size=2) for rank in range(2)]
    for step, whole in enumerate(alone):
        shared = [ranks[rank][step].micro_batches[micro] for micro in range(2) for rank in range(2)]
        for mine, other in zip(whole.micro_batches, shared, strict=True):
            assert torch.equal(mine.images, other.images)
            assert torch.equal(mine.label_weights, other.label_weights)
    later = steps(1, micro_batch=2, accumulation=4, start_example=16)[0]
    assert torch.equal(later.micro_batches[0].images, alone[2].micro_batches[0].images)


def test_an_epoch_sees_each_image_once_and_the_next_one_otherwise(digits):
    config = AugmentationConfig(padding=2)
    stream = TrainImages(digits.train, config, colour=torch.tensor([0]), seed=1, micro_batch=1)
    count = len(digits.train)
    first, second = stream.batch(0, count), stream.batch(count, count)
    assert sorted(first.rows.tolist()) == sorted(second.rows.tolist()) == list(range(count))
    places = torch.argsort(first.rows), torch.argsort(second.rows)
    again = (first.images[places[0]] == second.images[places[1]]).all((1, 2, 3)).float().mean()
    assert again < 0.1, "a crop of the first epoch is not that of the second"


@pytest.mark.parametrize("world_size", [1, 3])
def test_held_out_images_count_once_at_every_world_size(digits, world_size):
    seen, turns = [], set()
    for rank in range(world_size):
        batches = HeldOutImages(digits.held_out, micro_batch=32, rank=rank, world_size=world_size, max_images=100)
        turns.add(len(list(batches)))
        for batch, counted in batches:
            assert len(batch.images) == 32
            seen += batch.rows[:counted].tolist()
    assert len(set(seen)) == len(seen) == 100
    assert sorted(seen) == sorted(HeldOutImages(digits.held_out, micro_batch=7, max_images=100)._rows.tolist())
    assert max(seen) > 150, "not the first ones, which a folder sorts by class"
    assert len(turns) == 1
