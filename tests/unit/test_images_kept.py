"""Images stay in a process from one training to the next, as long as they are the same."""

import os

import numpy as np
from support.vision import encoded, noise, write_parquet

from lowland.trainers.data.images.kept import kept_images
from lowland.trainers.recipe import ImageDataConfig

IMAGES = [encoded(noise(i, 8, 8, 3)) for i in range(12)]


def data(path, **changes):
    """A data section over a file, of which a sixth is held out."""
    return ImageDataConfig.model_validate({"path": str(path), "held_out": 1 / 6, "threads": 2, **changes})


def same(one, other):
    """Whether two have the same pixels in memory."""
    return all(
        mine._pixels.data_ptr() == its._pixels.data_ptr()
        for mine, its in ((one.train, other.train), (one.held_out, other.held_out))
    )


def test_the_same_images_are_opened_once_and_labels_belong_to_who_asked(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", IMAGES, [i % 3 for i in range(12)])
    first = kept_images(data(path))
    again = kept_images(data(path))
    assert same(first, again)
    before = again.train.labels.copy()
    first.train.labels = 2 - first.train.labels
    assert np.array_equal(again.train.labels, before)
    assert np.array_equal(kept_images(data(path)).train.labels, before)


def test_another_recipe_or_changed_files_are_opened_anew(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", IMAGES, [i % 3 for i in range(12)])
    first = kept_images(data(path))
    other = kept_images(data(path, held_out=0.5))
    assert (len(first.train), len(other.train)) == (10, 6)
    write_parquet(path, IMAGES, [2 - i % 3 for i in range(12)])  # as large as before
    os.utime(path, ns=(1, 1))
    changed = kept_images(data(path))
    assert np.array_equal(changed.train.labels, 2 - first.train.labels)


def test_files_of_a_folder_count_one_by_one(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(4):
            (tmp_path / label / f"{number}.png").write_bytes(IMAGES[number])
    first = kept_images(data(tmp_path))
    assert same(first, kept_images(data(tmp_path)))
    (tmp_path / "b" / "4.png").write_bytes(IMAGES[4])
    assert kept_images(data(tmp_path)).metrics()["data/path/rows"] == 9
