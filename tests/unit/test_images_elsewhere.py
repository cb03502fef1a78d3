"""Batches made in other processes are those made here, whatever is done to images and however the stream is cut."""

import pickle
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
from support.vision import EVERYTHING, config, encoded, noise, write_parquet

from lowland.trainers.data.images.batches import TrainImages
from lowland.trainers.data.images.data import open_images
from lowland.trainers.data.images.elsewhere import Apart, ImagesApart
from lowland.trainers.data.images.halves import Halves
from lowland.trainers.errors import DataError
from lowland.trainers.recipe import AugmentationConfig, ImageDataConfig
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

ALONE = World.current(torch.device("cpu"))


def elsewhere(build, ahead):
    """What another process would make: of a pickle, and read-only."""
    there, index = pickle.loads(pickle.dumps(build)), 0
    while True:
        arrays = there(index)
        for values in arrays.values():
            values.flags.writeable = False
        yield arrays
        index += 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    images = [encoded(noise(i, 20 + i % 5, 24, 3), "JPEG") for i in range(23)]
    return write_parquet(
        tmp_path_factory.mktemp("images") / "a.parquet",
        images,
        [i % 3 for i in range(23)],
        side=["l", "r"] * 11 + ["l"],
    )


CROPS = {"resized_crop": {"area": [0.3, 1.0]}, "flip": 0.5}


@pytest.mark.parametrize("cache", ["always", "never"])
@pytest.mark.parametrize(
    ("augmentation", "halves"),
    [
        (EVERYTHING, None),
        ({**CROPS, "mixup": 0.4}, None),
        (CROPS, None),
        ({"padding": 2}, Halves((1, 2), 24, 0.5, across=True)),
    ],
    ids=["all", "crops and mixup", "crops", "halves"],
)
def test_steps_are_the_same_bit_by_bit(files, cache, augmentation, halves):
    data = ImageDataConfig.model_validate(
        {"path": str(files), "size": 16, "cache": cache, "group_column": "side", "held_out": 0.2, "threads": 1}
    )
    images = open_images(data, larger_originals=True).train
    how = AugmentationConfig.model_validate(augmentation)
    made = {}
    for apart in (None, Apart(elsewhere, ImagesApart(images, data))):
        for rank in range(2):
            cut = {"micro_batch": 3, "accumulation": 2, "rank": rank, "world_size": 2, "start_example": 12}
            stream = iter(
                TrainImages(
                    images,
                    how,
                    colour=torch.tensor([9] * 3, dtype=torch.uint8),
                    seed=5,
                    halves=halves,
                    apart=apart,
                    **cut,
                )
            )
            made[apart is None, rank] = [next(stream) for _ in range(4)]
            stream.close()
    for rank in range(2):
        for here, there in zip(made[True, rank], made[False, rank], strict=True):
            assert here.first_example == there.first_example
            assert np.array_equal(here.rows, there.rows)
            assert len(here.micro_batches) == len(there.micro_batches) == 2
            for one, other in zip(here.micro_batches, there.micro_batches, strict=True):
                assert {name for name, x in vars(one).items() if x is not None} == {
                    name for name, x in vars(other).items() if x is not None
                }
                for name, values in vars(one).items():
                    assert values is None or (
                        torch.equal(values, vars(other)[name]) and vars(other)[name].dtype == values.dtype
                    )


def test_a_folder_written_like_a_hub_id_stays_a_folder_where_it_is_not(files, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    shutil.copy(files, tmp_path / "here" / "birds.parquet")
    monkeypatch.chdir(tmp_path / "here")
    data = ImageDataConfig.model_validate({"path": "birds.parquet", "size": 16, "cache": "never"})
    apart = ImagesApart(open_images(data).train, data)
    monkeypatch.chdir(tmp_path)
    assert data.on_hub, "it would be looked for on the hub"
    assert str(tmp_path / "here" / "birds.parquet") in apart.place(0)


def test_labels_are_those_that_are_trained_on(files):
    data = ImageDataConfig.model_validate({"path": str(files), "size": 16, "cache": "never"})
    images = open_images(data).train
    images.labels = 2 - images.labels
    steps = TrainImages(
        images,
        AugmentationConfig(),
        colour=torch.zeros(3),
        seed=5,
        micro_batch=4,
        apart=Apart(elsewhere, ImagesApart(images, data)),
    )
    batch = next(iter(steps)).micro_batches[0]
    assert torch.equal(batch.labels, torch.from_numpy(images.labels)[batch.rows])
    batch.images.add_(1)  # what came from elsewhere may be written


def test_an_image_that_turns_out_to_be_corrupt_is_named(tmp_path):
    images = [encoded(noise(i, 64, 64, 3), "JPEG") for i in range(12)]
    images[3] = images[3][:1500]
    path = write_parquet(tmp_path / "cut.parquet", images, [0, 1] * 6)
    data = ImageDataConfig.model_validate(
        {"path": str(path), "size": 8, "cache": "never", "mean": [0.5] * 3, "std": [0.2] * 3}
    )
    found = open_images(data).train
    steps = TrainImages(
        found,
        AugmentationConfig(),
        colour=torch.zeros(3),
        seed=5,
        micro_batch=len(found),
        apart=Apart(elsewhere, ImagesApart(found, data)),
    )
    with pytest.raises(DataError, match=r"cut.parquet row 3: corrupt image .*truncated"):
        next(iter(steps))


@pytest.mark.parametrize("reader", ["local", "ray"])
def test_a_task_has_its_steps_made_elsewhere_if_the_recipe_wants_it(reader):
    asked = []

    def counted(build, ahead):
        asked.append(ahead)
        yield from elsewhere(build, ahead)

    task = build_task(config(data={"channels": 1, "threads": 1, "reader": reader, "prefetch": 3}), ALONE)
    for first in (0, 5 * 32):
        with closing(task.steps(first, counted)) as made, closing(task.steps(first)) as here:
            for _ in range(3):
                one, other = next(made), next(here)
                assert one.description == other.description
                for micro, same in zip(one.micro_batches, other.micro_batches, strict=True):
                    assert micro.keys() == same.keys()
                    assert all(torch.equal(values, same[name]) for name, values in micro.items())
    assert asked == ([3, 3] if reader == "ray" else [])
