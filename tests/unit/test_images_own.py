"""Transforms of one's own: the same of an image whoever applies them, and told where they are wrong."""

import random
from contextlib import closing

import numpy as np
import pytest
import torch
from support.training import states
from support.vision import EVERYTHING, WITHOUT_NORM, config, train

from lowland.trainers.data.images.batches import TrainImages
from lowland.trainers.data.images.data import open_images
from lowland.trainers.data.images.own import own_transform, tried
from lowland.trainers.data.images.processes import Processes
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.recipe import AugmentationConfig, ImageDataConfig
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

SHORT = {"length": "4 steps", "evaluation": {"every": None, "pictures": False}}
DROPOUT = {"model": {"config": {**WITHOUT_NORM["model"]["config"], "hidden_dropout_prob": 0.3}}}


def named(name):
    return f"support.own_transforms:{name}"


@pytest.fixture(scope="module")
def digits():
    return open_images(ImageDataConfig(channels=1, threads=1)).train


def stream(digits, **augmentation):
    how = AugmentationConfig.model_validate(augmentation)
    return TrainImages(digits, how, colour=torch.tensor([77]), seed=5, micro_batch=4)


def same(first, second, step):
    for name, parameters in states(first, step).items():
        for key, value in parameters.items():
            assert torch.equal(states(second, step)[name][key], value), (name, key)


@pytest.mark.parametrize("around", [{}, EVERYTHING], ids=["alone", "with all others"])
def test_an_image_is_transformed_alike_however_the_stream_is_cut_and_what_was_drawn_before(digits, around):
    steps = stream(digits, **around, transform=named("drawn"))
    whole = steps.batch(0, 12).images
    for size in (1, 3, 4):
        starts = list(range(0, 12, size))
        random.Random(size).shuffle(starts)
        for start in starts:
            assert torch.equal(steps.batch(start, size).images, whole[start : start + size])
    plain = stream(digits, **around).batch(0, 12).images
    assert (plain != whole).flatten(1).any(1).all()
    rows = steps.batch(0, 12).rows
    later = steps.batch(len(digits), len(digits))
    again = torch.cat([later.images[later.rows == row] for row in rows])
    assert (again != whole).flatten(1).any(1).all(), "another epoch transforms otherwise"


def test_an_identity_made_by_a_process_trains_as_none_does_to_the_bit(tmp_path):
    """With dropout, whose numbers are of the generator that transforms are given: not in the same process."""
    train(tmp_path / "none", {**SHORT, **DROPOUT})
    augmentation = {**EVERYTHING, "transform": named("identity")}
    train(tmp_path / "identity", {**SHORT, **DROPOUT, "augmentation": augmentation})
    same(tmp_path / "none", tmp_path / "identity", 4)


@pytest.mark.full
def test_a_training_is_the_same_with_one_process_and_with_two_and_when_it_goes_on(tmp_path):
    for name, threads, stops in (("whole", 1, (None,)), ("parts", 2, (2, None))):
        for stop in stops:
            data = {"channels": 1, "threads": threads, "prefetch": threads}
            changes = {"data": data, "augmentation": {"padding": 1, "transform": named("drawn")}}
            train(tmp_path / name, {**SHORT, **DROPOUT, **changes}, stop_after=stop)
    same(tmp_path / "whole", tmp_path / "parts", 4)


@pytest.mark.full
def test_processes_make_steps_in_order_and_hand_errors_on_as_they_are():
    from support.own_transforms import step

    generator = torch.get_rng_state()
    with closing(Processes(2)(step, 3)) as made:
        assert [int(next(made)["index"]) for _ in range(5)] == list(range(5))
        with pytest.raises(DataError, match=r"^step 5 is bad$"):
            next(made)
    assert torch.equal(torch.get_rng_state(), generator)


def test_trying_leaves_the_generators_as_they_were():
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    tried(named("drawn"), 3, 8)
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("as_float", r"of a uint8 tensor \[3, 8, 8\] it makes a float32 tensor \[3, 8, 8\], and must .* normalisation"),
        ("smaller", r"makes a uint8 tensor \[3, 7, 7\], and must make another of the same type and shape"),
        ("as_array", r"makes a ndarray, and must"),
        ("fails", r"of a uint8 tensor \[3, 8, 8\] it raises KeyError: 'no such thing'"),
        ("wants_arguments", r"called without arguments it raises TypeError: .*'size'"),
        ("nothing", r"must return a function of an image, not None"),
        ("missing", r"no attribute 'missing'; it must be importable on every worker"),
    ],
)
def test_a_transform_that_is_none_is_told_before_the_model_is_built(name, message):
    with pytest.raises(RecipeError, match=rf"^augmentation.transform = {named(name)}: .*{message}"):
        tried(named(name), 3, 8)


def test_what_is_wrong_is_told_before_images_are_read_and_with_their_size_before_the_first_step():
    world = World.current(torch.device("cpu"))
    data = {"path": "nowhere.parquet"}
    with pytest.raises(RecipeError, match=r"augmentation.transform = no_such_module:build: No module named"):
        build_task(config(data=data, augmentation={"transform": "no_such_module:build"}), world)
    with pytest.raises(RecipeError, match=r"of a uint8 tensor \[1, 8, 8\] it makes a uint8 tensor \[1, 7, 7\]"):
        build_task(config(augmentation={"transform": named("smaller")}), world)


def test_threads_of_one_process_are_refused(digits):
    with pytest.raises(ValueError, match="give `apart`"):
        iter(stream(digits, transform=named("drawn")))


def test_a_transform_is_made_once_a_process():
    assert own_transform(named("identity")) is own_transform(named("identity"))
